"""Everyday use: embeddings of pictures and captions as they come, and the examples of docs/checkpoints.md."""

import contextlib
import functools
import http.server
import io
import re
import threading

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import pictures_ccrk
from ccrk import CCRKForImageTextRetrieval, CCRKModel

TEXTS = ["a small red star", "ein großer blauer Kreis", "一个红色的星", "a green square", "ein Stern"]


@pytest.fixture
def pictures():
    noise = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in noise]


@pytest.fixture
def model(tiny_model):
    return tiny_model.ccrk.eval()


@contextlib.contextmanager
def serve(folder):
    """The address of a server of the folder's files, on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_embeddings_are_those_of_the_forward_whatever_the_batch(model, processor, pictures):
    with torch.no_grad():
        expected = model(**processor(images=pictures, text=TEXTS))
    model.train()  # dropout and stochastic depth must not reach the embeddings
    for batch_size in (1, 2, 5, 64):
        images = model.encode_images(pictures, processor, batch_size=batch_size)
        texts = model.encode_texts(tuple(TEXTS), processor, batch_size=batch_size)
        torch.testing.assert_close(images, expected.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(texts, expected.text_embeds, atol=1e-5, rtol=0)
    assert images.dtype == torch.float32 and images.device.type == "cpu" and not images.requires_grad
    assert model.encode_images([], processor).shape == model.encode_texts([], processor).shape == (0, 16)


@pytest.mark.slow
def test_pictures_as_path_url_pil_and_array_are_the_same(model, processor, pictures, tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    pictures[0].save(path)
    monkeypatch.setattr(pictures_ccrk, "is_public", lambda address: True)
    with serve(tmp_path) as address:
        mixed = [path, str(path), f"{address}/photo.png", pictures[0], np.asarray(pictures[0])]
        embeds = model.encode_images(mixed, processor, batch_size=2)
        with pytest.raises(ValueError, match=r"/none\.png cannot be read as a picture"):
            model.encode_images([f"{address}/none.png"], processor)
    torch.testing.assert_close(embeds, embeds[:1].expand(5, -1), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"photo\.png cannot be read as a picture"):  # nobody listens any more
        model.encode_images([f"{address}/photo.png"], processor)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_half_precision_gives_normalised_fp32_close_to_full(model, processor, pictures, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    full = model.encode_images(pictures, processor), model.encode_texts(TEXTS, processor)
    model.to(device, torch.bfloat16)
    half = model.encode_images(pictures, processor), model.encode_texts(TEXTS, processor)
    for exact, rounded in zip(full, half, strict=True):
        assert rounded.dtype == torch.float32 and rounded.device.type == "cpu"
        torch.testing.assert_close(rounded.norm(dim=1), torch.ones(5), atol=1e-5, rtol=0)
        assert not torch.equal(exact, rounded) and (exact * rounded).sum(dim=1).min() > 0.99


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("encode_texts", "a red star", "takes a list, not a single str"),
        ("encode_images", Image.new("RGB", (9, 9)), "takes a list, not a single Image"),
        ("encode_images", np.zeros((9, 9, 3), dtype=np.uint8), "takes a list, not a single ndarray"),
        ("encode_texts", ["a star", "?!"], "empty after normalisation"),
    ],
)
def test_what_cannot_be_encoded_is_refused(model, processor, method, argument, message):
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(argument, processor)


LANGUAGES = {"en": TEXTS, "de": TEXTS[::-1], "fr": TEXTS[1:] + TEXTS[:1], "cs": TEXTS[2:] + TEXTS[:2]}


def put_rows_into_mteb(pictures, monkeypatch):
    """Five pictures with a caption in each language in place of the rows that MTEB's Multi30K tasks would download."""
    from mteb.tasks.retrieval.multilingual import multi30k_retrieval

    ids = [str(index) for index in range(len(pictures))]
    images = datasets.Dataset.from_dict({"id": ids, "image": pictures}).cast_column("image", datasets.Image())
    for name in ("Multi30kT2IRetrieval", "Multi30kI2TRetrieval"):

        def load_data(self, image_is_query=name == "Multi30kI2TRetrieval", **kwargs):
            self.dataset, self.data_loaded = {}, True
            for language, captions in LANGUAGES.items():
                texts = datasets.Dataset.from_dict({"id": ids, "text": captions})
                queries, corpus = (images, texts) if image_is_query else (texts, images)
                right = {index: {index: 1} for index in ids}
                split = {"queries": queries, "corpus": corpus, "relevant_docs": right, "top_ranked": None}
                self.dataset[language] = {"test": split}

        monkeypatch.setattr(getattr(multi30k_retrieval, name), "load_data", load_data)


@pytest.mark.slow
def test_examples_of_the_documentation_run(tiny_model, processor, pictures, tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    pytest.importorskip("onnxscript")
    pytest.importorskip("mteb")
    put_rows_into_mteb(pictures, monkeypatch)
    folder = tmp_path / "outputs" / "demo" / "finetune"
    CCRKForImageTextRetrieval(tiny_model.config).save_pretrained(folder)
    processor.save_pretrained(folder)
    pictures[0].save(tmp_path / "photo.jpg")
    pictures[1].save(tmp_path / "other.jpg")
    monkeypatch.chdir(tmp_path)
    namespace, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "checkpoints.md").read_text(), re.DOTALL):
            exec(compile(block, "docs/checkpoints.md", "exec"), namespace)
    assert namespace["image_embeds"].shape == (2, 16) and "photo.jpg" in printed.getvalue()
    assert namespace["small_embeds"].shape == (2, 16)

    # sentence-transformers encodes as the model does, from what it has saved as well, and MTEB finds the same ranks.
    from sentence_transformers import SentenceTransformer

    whole = CCRKModel.from_pretrained(folder).eval()
    image_embeds = whole.encode_images(pictures, processor)
    retriever = SentenceTransformer("retriever", trust_remote_code=True, device="cpu")
    torch.testing.assert_close(retriever.encode(pictures, convert_to_tensor=True), image_embeds, atol=1e-6, rtol=0)
    assert not torch.equal(image_embeds[0], image_embeds[1])
    for to_image, result in zip((True, False), namespace["benchmark"].task_results, strict=True):
        found = {row["hf_subset"]: row["recall_at_3"] for row in result.scores["test"]}
        for language, texts in LANGUAGES.items():
            scores = whole.encode_texts(texts, processor) @ image_embeds.T
            ranks = (scores if to_image else scores.T).argsort(descending=True).argsort()
            assert found[language] == pytest.approx((ranks.diagonal() < 3).float().mean().item()), language

    # The ONNX files take other numbers of pictures, and longer captions, than they were made from.
    model, captions = namespace["model"], ["a small red star left of a large blue circle, above a ring", *TEXTS]
    torch.testing.assert_close(
        torch.from_numpy(namespace["onnx_embeds"]),
        model.encode_texts(["一个红色的星", "a green square", "a star"], processor),
        atol=1e-5,
        rtol=0,
    )
    for name, inputs in (("image", processor(images=pictures)), ("text", processor(text=captions))):
        session = namespace["onnxruntime"].InferenceSession(f"{name}.onnx")
        found = session.run([f"{name}_embeds"], {key: value.numpy() for key, value in inputs.items()})[0]
        with torch.no_grad():
            expected = model(**inputs)[f"{name}_embeds"]
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)
