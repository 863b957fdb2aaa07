"""URLs of images and sounds where a Path is taken: the same latents, ids on both sides, and one clear error."""

import base64
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pico
import pytest
import soundfile
import tiny_models
import torch
from PIL import Image
from test_audio import sounds

from hf_relstitch import Encoder, RelativeStitcher, StitchError
from hf_relstitch.cli.predict import predict
from hf_relstitch.data.reading import read_inputs


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder of pictures of 16 bits and sounds at 8 kHz, and its URL."""
    folder = tmp_path_factory.mktemp("served")
    random = np.random.default_rng(0)
    for index in range(40):
        Image.fromarray(random.integers(65_536, size=(8, 8), dtype=np.uint16)).save(folder / f"{index}.png")
    for index, sound in enumerate(sounds(4)):
        soundfile.write(folder / f"{index}.wav", sound, 8_000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_images_at_urls_stitch_and_are_classified(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    source, target = pico.saved("ViT", tmp_path / "source"), pico.saved("ResNet", tmp_path / "target")
    paths, urls = [folder / f"{row}.png" for row in range(40)], [f"{url}/{row}.png" for row in range(40)]
    model = RelativeStitcher.from_parts(source, target, urls, progress=False)
    torch.testing.assert_close(model.predict(urls[:3]), model.predict(paths[:3]))
    model.save_pretrained(tmp_path / "model")
    answers = predict(str(tmp_path / "model"), [urls[1], str(paths[1])])
    assert answers[0]["score"] == pytest.approx(answers[1]["score"])
    inline = "data:image/png;base64," + base64.b64encode(paths[0].read_bytes()).decode()
    torch.testing.assert_close(model.predict([inline]), model.predict(paths[:1]))
    (tmp_path / "table.csv").write_text("image\n" + "\n".join(urls))
    assert read_inputs(str(tmp_path / "table.csv"), column="image") == urls


def test_sounds_at_urls_are_resampled_as_files_are(served: tuple[Path, str]) -> None:
    folder, url = served
    model = tiny_models.classifier("audio", "wav2vec2").wav2vec2
    encoder = Encoder(model, tiny_models.processor("audio", "wav2vec2"))
    paths, urls = [folder / f"{row}.wav" for row in range(4)], [f"{url}/{row}.wav" for row in range(4)]
    torch.testing.assert_close(encoder.encode(urls, progress=False), encoder.encode(paths, progress=False))


def test_a_url_that_gives_nothing_is_named(served: tuple[Path, str]) -> None:
    url = served[1]
    encoder = Encoder(pico.classifier("ViT").vit, pico.image_processor())
    with pytest.raises(StitchError, match=r"row 1 .* cannot be encoded: http://\S+/gone.png cannot be fetched: HTTP"):
        encoder.encode([f"{url}/0.png", f"{url}/gone.png"], progress=False)
    with pytest.raises(StitchError, match=r"0.wav cannot be read as an image .*: look at it, or remove it"):
        encoder.encode([f"{url}/0.wav"], progress=False)
    with pytest.raises(StitchError, match=r"takes PIL images or Paths or URLs of images and what came .* is a str"):
        encoder.encode(["a text"], progress=False)
