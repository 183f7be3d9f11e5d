"""What the hub's client raises, in words: asked over real connections to a hub of our own on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers

from analyses.data import load_data
from analyses.running.models import check_model, load_model
from hooked_vit import HookedViT
from hooked_vit.errors import UnsupportedModelError
from hooked_vit.loading import hub

ANSWERS = {
    "missing": (404, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "no such file": (404, "EntryNotFound"),
    "broken": (503, ""),
}
SAYS = {
    "missing": "the hub has no such model",
    "gated": "it is gated: agree to its terms at http://127.0.0.1:.*/nobody/nothing",
    "no such file": "it holds no config.json",
    "broken": r"the hub \(http://127.0.0.1:.*\) cannot be reached \(it answers 503\), and it is not in the cache here",
    "refused": r"the hub \(http://127.0.0.1:.*\) cannot be reached \(.*refused\), and it is not in the cache here",
    "silent": r"the hub \(http://127.0.0.1:.*\) cannot be reached \(.*timed out\), and it is not in the cache here",
    "offline": "the hub is not asked, as HF_HUB_OFFLINE is set, and it is not in the cache here",
}


REVISION = "0123456789abcdef0123456789abcdef01234567"


def save(folder: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


class _Hub(BaseHTTPRequestHandler):
    state = ""

    def answer(self) -> None:
        status, code = ANSWERS[self.state]
        self.send_response(200 if self.path in ("", "/") and status < 500 else status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[str]:
    """A hub in the state that is asked for."""
    state = request.param
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", state == "offline")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    huggingface_hub.close_session()
    hub._trouble.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as taken:  # takes connections and says nothing
        server = None
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        if state in ANSWERS or state == "kept":
            handler = type("Hub", (_Hub,), {"state": state})
            if state == "kept":
                kept = save(tmp_path / "on the hub")
                handler = type("Hub", (_Kept,), {"folder": kept})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_address[1]}"
        elif state == "refused":
            taken.close()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield state
        if server is not None:
            server.shutdown()
            server.server_close()
    huggingface_hub.close_session()
    hub._trouble.cache_clear()


@pytest.mark.parametrize("endpoint", list(SAYS), indirect=True)
def test_no_such_model_is_told_from_a_hub_that_is_away(endpoint: str) -> None:
    """And quickly: the client alone tries for 20 seconds what cannot be reached."""
    began = time.monotonic()
    with pytest.raises(UnsupportedModelError, match=f"'nobody/nothing' is no folder here, and {SAYS[endpoint]}"):
        check_model("nobody/nothing")
    with pytest.raises(UnsupportedModelError, match=SAYS[endpoint]):
        HookedViT.from_pretrained("nobody/nothing")
    assert time.monotonic() - began < 10


class _Kept(_Hub):
    """A hub that holds one revision of one checkpoint, in a folder."""

    folder: Path

    def answer(self) -> None:
        place, _, name = self.path.partition(f"/nobody/nothing/resolve/{REVISION}/")
        file = self.folder / name
        found = file.read_bytes() if not place and name and file.is_file() else b""
        self.send_response(200 if found or self.path in ("", "/") else 404)
        self.send_header("X-Error-Code", "" if found else "EntryNotFound")
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found)

    do_GET = do_HEAD = answer


@pytest.mark.parametrize("endpoint", ["kept"], indirect=True)
def test_a_revision_said_with_the_name_is_the_one_that_is_loaded(endpoint: str, tmp_path) -> None:
    spec = f"nobody/nothing@{REVISION}"
    assert not hub.is_cached(spec)
    model = load_model(spec)
    assert model.processor_size == (32, 32)
    x = torch.ones(1, 3, 32, 32)
    assert torch.equal(model(x), HookedViT.from_pretrained(tmp_path / "on the hub")(x))
    assert hub.is_cached(spec)
    assert not hub.is_cached("nobody/nothing")  # that would be its main branch
    with pytest.raises(UnsupportedModelError, match="nobody/nothing"):
        check_model("nobody/nothing@another")
    with pytest.raises(ValueError, match="of one revision"):
        HookedViT.from_pretrained(spec, revision="another")


@pytest.mark.parametrize("endpoint", ["refused", "silent"], indirect=True)
def test_a_data_set_on_a_hub_that_is_away(endpoint: str) -> None:
    began = time.monotonic()
    with pytest.raises(
        ConnectionError, match=f"cannot reach the hub for data set 'nobody/photos' .{SAYS[endpoint][:20]}"
    ):
        load_data("hf:nobody/photos:test")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("endpoint", ["refused"], indirect=True)
def test_a_folder_is_not_looked_for_on_the_hub(endpoint: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "trouble", lambda: pytest.fail("the hub was asked"))
    assert hub.within_reach(tmp_path, {"revision": "x"}) == {"revision": "x"}
