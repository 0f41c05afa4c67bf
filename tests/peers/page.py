"""The page of `vela serve` in headless Chromium: a picture is dropped, asked about twice, and the screen is kept.

Usage: python tests/peers/page.py OUT_DIR [VELA] [MODEL]      (needs playwright and chromium; not part of CI)
"""

import base64
import pathlib
import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright


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
    page.wait_for_selector("figure img")


def ask(page, question):
    """Asks and waits for the end of the answer."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant:not(.writing) small:not(:empty)")
    page.wait_for_selector(".writing", state="detached")
    turn = page.query_selector_all(".assistant")[-1]
    assert "wrong" not in turn.get_attribute("class"), turn.inner_text()
    return turn.inner_text()


def main():
    """Runs it all."""
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    vela = sys.argv[2] if len(sys.argv) > 2 else "target/release/vela"
    model = ["--model", sys.argv[3]] if len(sys.argv) > 3 else []
    scene = out / "scene.png"
    subprocess.run([vela, "sim", "--snapshot", str(scene), "--seed", "5"], check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen([vela, "serve", "--port", "0", *model], stdout=subprocess.PIPE, text=True)
    url = server.stdout.readline().split()[-1]
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, size, scheme in [("wide", (1200, 760), "light"), ("narrow", (420, 860), "dark")]:
                page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
                wrong, asked = [], []
                page.on("pageerror", lambda error: wrong.append(str(error)))
                page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
                page.on("request", lambda request: asked.append(request.url))
                page.goto(url)
                page.wait_for_function("document.querySelector('#model').textContent.includes('tokens')")
                page.screenshot(path=out / f"{name}-empty.png")
                drop(page, scene)
                print(ask(page, "how many objects are on the table?"))
                second = ask(page, "is there a green cylinder?")
                print(second)
                assert " 0 of them known" not in second, "the second question reads the picture again"
                page.screenshot(path=out / f"{name}-answered.png")
                page.click("#fresh")
                assert page.query_selector(".assistant") is None and page.query_selector("figure img")
                assert not wrong, wrong
                assert all(one.startswith((url, "data:", "blob:")) for one in asked), asked
                page.close()
            browser.close()
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0
    print("all well; look at", out)


if __name__ == "__main__":
    main()
