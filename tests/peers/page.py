"""The page of `vela serve` in headless Chromium: a picture is dropped, asked about twice, what the answer looked at is
drawn over it; with `vela demo --serve`, the arm's camera is watched and asked about. The screen is kept.

Usage: python tests/peers/page.py OUT_DIR [VELA] [MODEL]      (needs playwright and chromium; not part of CI)
"""

import base64
import pathlib
import shutil
import subprocess
import sys

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
# How far the pixels of the first heat map differ: transparency says that nothing was drawn.
DRAWN = """() => {
  const map = document.querySelector("#pictures canvas");
  if (!map.width || !map.height) return null;
  const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
  let low = 255, high = 0, clear = 0;
  for (let at = 0; at < pixels.length; at += 4) {
    low = Math.min(low, pixels[at]); high = Math.max(high, pixels[at]); clear += pixels[at + 3] === 0;
  }
  return { low, high, clear: clear / (pixels.length / 4), width: map.width, height: map.height };
}"""
# Where the map lies against its picture, in pixels of the screen.
OVER = """() => {
  const [image, map] = ["img", "canvas"].map(tag => document.querySelector("#pictures " + tag).getBoundingClientRect());
  return Math.max(...["left", "top", "right", "bottom"].map(side => Math.abs(image[side] - map[side])));
}"""


def drop(page, path):
    """A picture as if it had been dropped on the page."""
    file = base64.b64encode(pathlib.Path(path).read_bytes()).decode()
    # The page may not fetch a data URL: the bytes go in as they are.
    page.evaluate(
        """file => {
          const bytes = Uint8Array.from(atob(file), c => c.charCodeAt(0)), data = new DataTransfer();
          data.items.add(new File([bytes], "scene.png", { type: "image/png" }));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        file,
    )
    page.wait_for_selector("#pictures img")


def until(page, holds):
    """Waits for an expression to hold. The page's policy lets nobody evaluate texts, so it is asked again and again."""
    for _ in range(600):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came to hold: {holds}")


def ask(page, question):
    """Asks and waits for the end of the answer."""
    before = len(page.query_selector_all(".assistant"))
    page.fill("#question", question)
    page.press("#question", "Enter")
    until(page, f"document.querySelectorAll('.assistant:not(.writing)').length > {before}")
    turn = page.query_selector_all(".assistant")[-1]
    assert "wrong" not in turn.get_attribute("class"), turn.inner_text()
    assert turn.query_selector("small").inner_text(), "no latency is told"
    return turn.inner_text()


def heat_map(page):
    """The map of the answer is there, lies over the picture, and is not all one colour."""
    page.wait_for_selector(".assistant.drawn")
    page.wait_for_selector("#looked:not([hidden])")
    drawn, away = page.evaluate(DRAWN), page.evaluate(OVER)
    assert drawn and drawn["high"] - drawn["low"] > 40 and drawn["clear"] < 0.01, drawn
    assert away < 1, away
    return page.inner_text("#pictures figcaption")


def open_page(browser, url, size=(1200, 820), scheme="light"):
    """The page, and what went wrong on it or was asked of others."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    ours = (url, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(ours) else wrong.append(request.url))
    page.goto(url)
    until(page, "document.querySelector('#model').textContent.includes('tokens')")
    return page, wrong


def end(server):
    """Ends a server as a person does."""
    server.terminate()
    assert server.wait(timeout=60) == 0


def served(browser, out, vela, model):
    """A picture, asked about, on a wide and on a narrow screen."""
    scene = out / "scene.png"
    subprocess.run([vela, "sim", "--snapshot", str(scene), "--seed", "5"], check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen([vela, "serve", "--port", "0", *model], stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().split()[-1]
    try:
        for name, size, scheme in [("wide", (1200, 820), "light"), ("narrow", (420, 860), "dark")]:
            page, wrong = open_page(browser, url, size, scheme)
            page.screenshot(path=out / f"{name}-empty.png")
            assert not page.is_visible("#live"), "there is no camera here"
            drop(page, scene)
            print(ask(page, "how many things are on the table?"))
            print(heat_map(page))
            second = ask(page, "is there a green cylinder?")
            print(second)
            assert " 0 known" not in second, "the second question reads the picture again"
            page.wait_for_timeout(400)
            heat_map(page)
            page.screenshot(path=out / f"{name}-answered.png", full_page=True)
            page.uncheck("#looked input")
            until(page, "getComputedStyle(document.querySelector('#pictures canvas')).opacity === '0'")
            page.click("#fresh")
            assert page.query_selector(".assistant") is None and page.query_selector("#pictures img")
            assert not page.is_visible("#looked")
            assert not wrong, wrong
            page.close()
    finally:
        end(server)


def watched(browser, out, vela):
    """The arm at work, seen live, and a question about what is seen."""
    command = [vela, "demo", "--serve", "--port", "0", "--json"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = next(line for line in demo.stderr if "http://" in line).split()[-1]
    try:
        page, wrong = open_page(browser, url)
        until(page, "document.querySelector('#live img').naturalWidth > 0")
        before = page.get_attribute("#live img", "src")
        until(page, f"document.querySelector('#live img').src !== '{before}'")
        print("live:", page.inner_text("#live p"))
        page.click("#live button")
        page.wait_for_selector("#pictures img")
        print(ask(page, "what is on the table?"))
        print(heat_map(page))
        page.wait_for_timeout(400)
        page.screenshot(path=out / "live.png", full_page=True)
        # The camera may have had no picture for a moment between two episodes.
        wrong = [one for one in wrong if "503" not in one]
        assert not wrong, wrong
        page.close()
    finally:
        end(demo)


def main():
    """Runs it all."""
    from playwright.sync_api import sync_playwright

    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    vela = sys.argv[2] if len(sys.argv) > 2 else "target/release/vela"
    model = ["--model", sys.argv[3]] if len(sys.argv) > 3 else []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        served(browser, out, vela, model)
        if not model:
            watched(browser, out, vela)
        browser.close()
    print("all well; look at", out)


if __name__ == "__main__":
    main()
