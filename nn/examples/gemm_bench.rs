//! scratch
use std::time::Instant;
fn run(m: usize, n: usize, k: usize, a: (isize, isize), b: (isize, isize), name: &str) {
    let x = vec![1f32; m * k];
    let w = vec![1f32; n * k];
    let mut c = vec![0f32; m * n];
    let mut best = f64::MAX;
    for _ in 0..30 {
        let t = Instant::now();
        for _ in 0..4 {
            unsafe {
                gemm::gemm(m, n, k, c.as_mut_ptr(), 1, n as isize, false, x.as_ptr(), a.1, a.0, w.as_ptr(), b.1, b.0, 0.0, 1.0, false, false, false, gemm::Parallelism::None);
            }
        }
        best = best.min(t.elapsed().as_secs_f64() / 4.0);
    }
    println!("{name} m{m} n{n} k{k}: {:.1} GFLOP/s", 2.0 * (m * n * k) as f64 / best / 1e9);
}
fn main() {
    for m in [512usize, 1024, 2048] {
        for (n, k) in [(192usize, 192usize), (576, 192), (768, 192), (192, 768)] {
            // forward: x[m,k] * w[n,k]^T
            run(m, n, k, (k as isize, 1), (1, k as isize), "fwd nt");
            run(m, n, k, (k as isize, 1), (n as isize, 1), "nn    ");
            // dw [n,k] = dy[m,n]^T x[m,k]
            run(n, k, m, (1, n as isize), (k as isize, 1), "dw tn ");
        }
    }
    run(128, 128, 32, (192, 1), (1, 192), "qk");
    run(128, 32, 128, (128, 1), (192, 1), "pv");
    run(1, 768, 192, (192, 1), (1, 192), "gemv");
    run(20, 768, 192, (192, 1), (1, 192), "small");
    run(20, 192, 768, (768, 1), (1, 768), "small");
}
