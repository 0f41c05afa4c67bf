//! PyTorch files are data: what is asked of them is read, what would run is refused, what is torn is an error.

use vela_nn::{Error, Result};
use vela_policy::pickle::Pickle;
use vela_policy::torch_file::tensors_of;

/// A pickle of `{"weight": _rebuild_tensor_v2(storage "0" of `storage`, offset, size, stride)}` as torch writes it.
fn pickle(storage: &str, offset: u8, size: &[u8], stride: &[u8]) -> Vec<u8> {
    let mut out = b"\x80\x02}q\x00X\x06\x00\x00\x00weightq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storage".to_vec();
    out.extend(format!("ctorch\n{storage}\n").bytes());
    out.extend(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ");
    out.extend([b'K', offset, b'(']);
    size.iter().for_each(|n| out.extend([b'K', *n]));
    out.extend(b"t(");
    stride.iter().for_each(|n| out.extend([b'K', *n]));
    out.extend(b"t\x89ccollections\nOrderedDict\n)RtRs.");
    out
}

/// A zip archive of stored entries.
fn zip(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let (at, size) = (out.len() as u32, bytes.len() as u32);
        let mut common = [0u8; 16];
        common[8..12].copy_from_slice(&size.to_le_bytes());
        common[12..16].copy_from_slice(&size.to_le_bytes());
        let fields = [&common[..2], &common[..2], &[0u8; 4][..], &[0u8; 4][..], &common[8..]].concat();
        let length = (name.len() as u16).to_le_bytes();
        out.extend([&b"PK\x03\x04\x14\x00"[..], &fields, &length, &[0, 0], name.as_bytes(), bytes].concat());
        let tail = [&length[..], &[0; 12], &at.to_le_bytes(), name.as_bytes()].concat();
        directory.extend([&b"PK\x01\x02\x14\x00\x14\x00"[..], &fields, &tail].concat());
    }
    let (start, size) = (out.len() as u32, directory.len() as u32);
    let count = (entries.len() as u16).to_le_bytes();
    out.extend(directory);
    out.extend(
        [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size.to_le_bytes(), &start.to_le_bytes(), &[0, 0]]
            .concat(),
    );
    out
}

fn archive(pickle: Vec<u8>) -> Vec<u8> {
    let numbers: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    zip(&[("model/data.pkl", pickle), ("model/byteorder", b"little".to_vec()), ("model/data/0", numbers)])
}

fn refusal(bytes: &[u8]) -> String {
    tensors_of(bytes).err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn tensors_come_out_by_name_with_their_strides() -> Result<()> {
    let found = tensors_of(&archive(pickle("FloatStorage", 0, &[2, 2], &[1, 2])))?;
    assert_eq!(found["weight"].to_vec2::<f32>()?, [[1.0, 3.0], [2.0, 4.0]]);
    let found = tensors_of(&archive(pickle("FloatStorage", 1, &[2], &[2])))?;
    assert_eq!(found["weight"].to_vec1::<f32>()?, [2.0, 4.0]);
    // 1.0 in float32 is 0x3f800000: two bfloat16 numbers, 0 and 1.
    let found = tensors_of(&archive(pickle("BFloat16Storage", 0, &[2], &[1])))?;
    assert_eq!(found["weight"].to_vec1::<f32>()?, [0.0, 1.0]);
    let found = tensors_of(&archive(pickle("HalfStorage", 0, &[2], &[1])))?;
    assert_eq!(found["weight"].to_vec1::<f32>()?, [0.0, 1.875]);
    Ok(())
}

#[test]
fn a_pickle_that_tries_to_run_code_is_refused_by_name() {
    for (name, hostile) in [
        ("posix.system", b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.".to_vec()),
        ("builtins.eval", b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.".to_vec()),
        ("os.system", b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.".to_vec()),
        ("subprocess.Popen", b"\x80\x02csubprocess\nPopen\n)\x81.".to_vec()),
        // Instances by their old opcode, and an extension registry.
        ("0x69", b"\x80\x02(ios\nsystem\n.".to_vec()),
        ("0x82", b"\x80\x02\x82\x01.".to_vec()),
    ] {
        let error = refusal(&archive(hostile));
        assert!(error.contains(name) && error.contains("nothing was run"), "{name}: {error}");
    }
    // A name from the list with a hostile argument makes nothing either: it is a record of what was asked.
    let error = refusal(&archive(b"\x80\x02X\x02\x00\x00\x00hi)R.".to_vec()));
    assert!(error.contains("calls what is no name"), "{error}");
}

#[test]
fn tensors_that_reach_outside_are_refused() {
    for (offset, size, stride) in
        [(0, &[5u8][..], &[1u8][..]), (1, &[4], &[1]), (0, &[2], &[200]), (0, &[200, 200], &[0, 0])]
    {
        let error = refusal(&archive(pickle("FloatStorage", offset, size, stride)));
        assert!(error.contains("outside its storage"), "{error}");
    }
    assert!(refusal(&archive(pickle("torch_xla", 0, &[1], &[1]))).contains("torch.torch_xla"));
}

#[test]
fn every_cut_and_every_flipped_byte_is_an_error_or_an_answer() {
    let whole = archive(pickle("FloatStorage", 0, &[2, 2], &[1, 2]));
    for end in 0..whole.len() {
        assert!(tensors_of(&whole[..end]).is_err(), "cut at {end}");
    }
    let mut changed = whole.clone();
    for at in 0..whole.len() {
        for flip in [0xff, 0x01, 0x80] {
            changed[at] ^= flip;
            let _ = tensors_of(&changed);
            changed[at] ^= flip;
        }
    }
    // Deep nesting costs no stack, and circles end.
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(std::iter::repeat_n(b']', 100_000));
    deep.extend(std::iter::repeat_n(b'a', 99_999));
    deep.push(b'.');
    assert!(Pickle::read(&deep).is_ok());
    let circle = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.".to_vec();
    let error: Result<_> = tensors_of(&archive(circle)).map_err(Error::invalid);
    assert!(error.is_err_and(|e| e.to_string().contains("deep")));
    assert!(refusal(b"\x80\x02}.").contains("zip"));
}
