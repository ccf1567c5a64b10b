"""Janus: the conformance kit, transformers' own passes on the same weights, and the published folder."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from asgkit.backbones import ROLES, Answers, load_backbone
from asgkit.backbones.conformance import assert_conforms
from asgkit.backbones.conformance_checks import perturb
from asgkit.backbones.janus import model as module
from asgkit.backbones.janus.model import EOS, IMAGE, IMAGE_END, IMAGE_START, TURN, USER, Janus, full_size
from asgkit.backbones.weights import UnmatchedTensors

TOLERANCE = 1e-4  # fp32, largest difference from transformers
DRAWINGS = ["a red ball", "two trees behind a blue car"]
QUESTIONS = ["What is in the middle?", "Is it red?"]


@pytest.fixture(scope="module")
def janus():
    """A tiny instance whose roles all differ from the base; tests leave its weights alone."""
    backbone = Janus.load("random")
    perturb(backbone, ROLES, seed=0)
    return backbone


@pytest.fixture(scope="module")
def views(pictures):
    return [picture.resize((32, 32)) for picture in pictures[:2]]


def test_it_keeps_every_promise_of_the_protocol(views):
    backbone = load_backbone("janus", base="random", lora_dropout=0.3)
    assert_conforms(backbone, views)
    assert (backbone.spec.name, backbone.spec.paradigm, backbone.spec.code_shape) == ("janus", "autoregressive", (16,))
    assert sum(p.numel() for p in backbone.network.parameters()) < 3e6


def test_the_random_base_is_one_base(janus):
    other = Janus.load("random", seed=5)
    base = lambda b: [p for name, p in b.network.named_parameters() if "lora_" not in name]
    assert all(torch.equal(a, b) for a, b in zip(base(janus), base(other), strict=True))


# -- transformers on the same weights ------------------------------------------------------------------------------
def published_request(janus, text: str) -> torch.Tensor:
    """A chat about an image as one row of ids with image placeholders, the way transformers reads it."""
    image = IMAGE_START + IMAGE * 16 + IMAGE_END + "\n"
    return torch.tensor([[janus.bos, *janus.tokenizer.encode(DEFAULT_SYSTEM_PROMPT + USER + image + text + TURN)]])


def seen_pixels(janus, view):
    return janus.processor(images=[view], return_tensors="pt").pixel_values


@pytest.mark.parametrize("role", [None, "solver"])
def test_text_logits_are_those_of_transformers(janus, views, role):
    answers = janus.answer(janus.prefix(views, role=role), QUESTIONS, max_new_tokens=6, temperature=1.0, seed=3)
    ours = janus.text_stats(views, QUESTIONS, answers, role=role, keep_logits=True)
    for row, (view, question) in enumerate(zip(views, QUESTIONS, strict=True)):
        said = answers.ids[row][answers.mask[row]]
        ids = torch.cat([published_request(janus, question), said[None]], 1)
        with torch.no_grad(), janus.use_role(role):
            logits = janus.network(input_ids=ids, pixel_values=seen_pixels(janus, view)).logits[0]
        theirs = logits[-len(said) - 1 : -1]
        assert (theirs - ours.logits[row, : len(said)]).abs().max() < TOLERANCE


def test_greedy_answers_are_those_of_transformers(janus, views):
    ours = janus.answer(janus.prefix(views, role="solver"), QUESTIONS, max_new_tokens=8)
    for row, (view, question) in enumerate(zip(views, QUESTIONS, strict=True)):
        ids = published_request(janus, question)
        with janus.use_role("solver"):
            out = janus.network.generate(
                inputs=ids, attention_mask=torch.ones_like(ids), pixel_values=seen_pixels(janus, view),
                generation_mode="text", do_sample=False, max_new_tokens=8, eos_token_id=janus.tokenizer.end,
                pad_token_id=janus.tokenizer.pad)
        assert out[0, ids.shape[1] :].tolist() == ours.ids[row][ours.mask[row]].tolist()


def draw_with_transformers(janus, guidance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy codes (B, 16) of transformers' loop, and what its head said at every step, (2 B, 16, V)."""
    said, head = [], janus.network.model.generation_head
    hook = head.register_forward_hook(lambda _, __, out: said.append(out))
    # the prompts are of different lengths: this is also a test of padding on the left
    rows = [[janus.bos, *janus.tokenizer.encode(USER + text + TURN), janus.image_start] for text in DRAWINGS]
    ids, mask = module.pad_rows(rows, janus.tokenizer.pad, left=True)
    settings = janus.network.generation_config
    settings.generation_kwargs = {"boi_token_id": janus.image_start}
    with janus.use_role("generator"):
        codes = janus.network.generate(
            inputs=ids, attention_mask=mask.long(), generation_mode="image", do_sample=False, guidance_scale=guidance,
            bos_token_id=janus.bos, pad_token_id=janus.tokenizer.pad, max_length=ids.shape[1] + 16)
    hook.remove()
    return codes, torch.stack(said, 1)


@pytest.mark.parametrize("guidance", [1.5, 5.0])
def test_drawings_are_those_of_transformers(janus, guidance):
    codes, said = draw_with_transformers(janus, guidance)
    ours = janus.generate_images(DRAWINGS, seeds=[0, 0], role="generator", guidance=guidance, temperature=0.0)
    assert torch.equal(codes, ours.codes)
    assert (said[:2].log_softmax(-1).gather(-1, codes[..., None])[..., 0] - ours.logp).abs().max() < TOLERANCE
    forced = janus.generation_stats(DRAWINGS, codes, role="generator", keep_logits=True)
    assert (forced.logits - said[:2]).abs().max() < TOLERANCE
    with torch.no_grad():
        pixels = janus.network.decode_image_tokens(codes)
    shown = np.stack([np.asarray(image) for image in ours.images]).astype(float)
    assert np.abs(shown - ((pixels.clamp(-1, 1) + 1) * 127.5).numpy()).max() <= 0.5 + 1e-3


def test_image_codes_go_by_direction(views):
    """With entries of length 1 they are those of transformers; lengths alone change neither code nor picture."""
    janus = Janus.load("random")
    book = janus.network.model.vqmodel.quantize.embedding.weight
    book.data = torch.nn.functional.normalize(book.data, dim=-1)
    codes = janus.encode_images(views)
    shown = torch.from_numpy(np.stack([np.asarray(view) for view in views])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        theirs = janus.network.model.vqmodel.encode(shown).image_tokens
    assert torch.equal(codes, theirs.view(2, 16)) and len(codes.unique()) > 2
    before = janus.decode_images(codes)
    book.data *= torch.linspace(0.5, 3.0, len(book))[:, None]
    assert torch.equal(janus.encode_images(views), codes)
    assert [a.tobytes() for a in janus.decode_images(codes)] == [b.tobytes() for b in before]


# -- drawing -------------------------------------------------------------------------------------------------------
def test_a_null_request_keeps_its_ends_and_its_length(janus):
    ids, mask = janus._requests(DRAWINGS, free=True)
    pad = janus.tokenizer.pad
    for row in (2, 3):
        null, own = ids[row][mask[row]], ids[row - 2][mask[row - 2]]
        assert null[[0, -1]].tolist() == own[[0, -1]].tolist() == [janus.bos, janus.image_start]
        assert set(null[1:-1].tolist()) == {pad} and len(null) == len(own)


def test_guidance_changes_the_drawing_and_not_what_logp_means(janus):
    plain, guided, native = (janus.generate_images(DRAWINGS, seeds=[1, 2], role="generator", guidance=g)
                             for g in (1.0, 4.0, None))
    assert not torch.equal(plain.codes, guided.codes) and not torch.equal(guided.codes, native.codes)
    for drawn in (plain, guided):
        scored = janus.generation_stats(DRAWINGS, drawn.codes, role="generator")
        assert torch.allclose(scored.logp, drawn.logp, atol=TOLERANCE)


def test_any_chunk_gives_the_same_rows(janus, views, monkeypatch):
    def everything():
        drawn = janus.generate_images(DRAWINGS, seeds=[1, 2], role="generator")
        answers = janus.answer(janus.prefix(views, role="solver"), QUESTIONS, max_new_tokens=5, temperature=1.0)
        return drawn.codes, answers.ids, janus.encode_images(views)

    together = everything()
    monkeypatch.setattr(Janus, "rows_at_once", 1)
    assert all(torch.equal(a, b) for a, b in zip(everything(), together, strict=True))


def test_noise_and_seeds_that_do_not_fit_are_refused(janus):
    with pytest.raises(ValueError, match="2 prompts need as many seeds, got 1"):
        janus.generate_images(DRAWINGS, seeds=[1], role=None)
    with pytest.raises(ValueError, match="takes no noise"):
        janus.generation_stats(DRAWINGS, torch.zeros(2, 16, dtype=torch.int64), role=None, noise=object())


# -- adapters ------------------------------------------------------------------------------------------------------
def test_adapters_sit_on_the_language_model_and_the_generators_on_the_drawing_head_too(janus):
    modules = {role: {name.split(".lora_")[0] for name in janus.roles._named[role]} for role in ROLES}
    language = {name for name in modules["proposer"] if name.startswith("model.language_model.layers.")}
    assert modules["proposer"] == modules["solver"] == language and len(language) == 2 * 7
    assert modules["generator"] - language == {"model.generation_head.proj_out", "model.generation_head.vision_head"}
    assert language < modules["generator"]


# -- the published folder ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The random instance in the published layout, its weights in several files."""
    path = tmp_path_factory.mktemp("janus")
    network, words, processor = module._random(torch.float32)
    network.save_pretrained(path, max_shard_size="500KB")
    words.save_pretrained(path)
    processor.save_pretrained(path)
    # as published: a class whose own rules of spacing would replace those of tokenizer.json
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizerFast"}')
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def same_model(a: Janus, b: Janus, views) -> bool:
    pairs = [(x.text_stats(views, QUESTIONS, ["yes", "no"], role=None, keep_logits=True).logits,
              x.generate_images(DRAWINGS, seeds=[1, 2], role=None).codes, x.encode_images(views)) for x in (a, b)]
    return all(torch.equal(x, y) for x, y in zip(*pairs, strict=True))


def test_a_published_folder_opens_to_the_same_model(folder, views):
    assert same_model(Janus.load(str(folder)), Janus.load("random"), views)


def test_a_folder_without_output_layer_is_tied(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.safetensors"):
        save_file({k: v for k, v in load_file(file).items() if k != "lm_head.weight"}, file)
    network = Janus.load(str(tmp_path)).network
    assert network.lm_head.weight is network.model.language_model.embed_tokens.weight
    apart = Janus.load(str(folder)).network
    assert not torch.equal(apart.lm_head.weight, apart.model.language_model.embed_tokens.weight)


def test_every_tensor_is_accounted_for(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = min(tmp_path.glob("*.safetensors"))
    tensors = load_file(file)
    first = min(tensors)
    save_file({("renamed" if k == first else k): v for k, v in tensors.items()}, file)
    with pytest.raises(UnmatchedTensors, match=f"1 missing: {first}; 1 unexpected: renamed"):
        Janus.load(str(tmp_path))


def test_missing_files_are_listed(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="lacks tokenizer.json: copy them from deepseek-community/Janus"):
        Janus.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder"):
        Janus.load(str(tmp_path / "none"))


def test_the_tokenizer_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    module.phrase_tokenizer([EOS]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no token <｜begin▁of▁sentence｜>"):
        Janus.load(str(tmp_path))


# -- precision and size --------------------------------------------------------------------------------------------
def test_bf16_weights_fp32_adapters_frequencies_and_pixels(folder, views):
    janus, exact = (Janus.load(str(folder), precision=p) for p in ("bf16", "fp32"))
    model = janus.network.model
    kinds = {name: {p.dtype for n, p in part.named_parameters() if "lora_" not in n}
             for name, part in (*model.named_children(), ("lm_head", janus.network.lm_head))}
    assert kinds.pop("vqmodel") == {torch.float32} and set.union(*kinds.values()) == {torch.bfloat16}
    frequencies = exact.network.model.language_model.rotary_emb.inv_freq
    assert torch.equal(model.language_model.rotary_emb.inv_freq, frequencies) and frequencies.dtype == torch.float32
    assert {p.dtype for role in ROLES for p in janus.role_parameters(role)} == {torch.float32}
    assert torch.equal(janus.encode_images(views), exact.encode_images(views))
    drawn = janus.generate_images(DRAWINGS, seeds=[1, 2], role="generator")
    scores = [b.generation_stats(DRAWINGS, drawn.codes, role="generator", grad=True).loss for b in (janus, exact)]
    assert torch.allclose(*scores, atol=0.05)
    scores[0].sum().backward()
    assert any(p.grad.any() for p in janus.role_parameters("generator"))
    said = janus.answer(janus.prefix(views, role="solver"), QUESTIONS, max_new_tokens=4, keep_logits=2)
    assert isinstance(said, Answers) and said.logits.dtype == torch.float32 and said.logits.isfinite().all()


@pytest.mark.parametrize(("size", "billions"), [("1B", 2.077), ("7B", 7.408)])
def test_the_published_size_is_counted_without_memory(size, billions):
    network = full_size(size)
    assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    assert {p.device.type for p in network.parameters()} == {"meta"}


def test_pictures_that_are_not_square_are_padded(janus):
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    assert janus.encode_images([wide]).shape == (1, 16)
    assert janus.prefix([wide], role=None).cache[0][0].shape[2] == janus.text_start
