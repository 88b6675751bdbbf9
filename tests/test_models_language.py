from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import transformers
from pytorch_lightning.loggers.logger import DummyLogger

from fairsisa.data.corpus_blocks import NO_TARGET, Blocks, Masking, encode_blocks, pack_blocks, read_documents
from fairsisa.errors import ConfigError, ModelError, StoreError, TrainingError
from fairsisa.models.classifier import Schedule
from fairsisa.models.language import (
    BlockData,
    LanguageModule,
    collate_blocks,
    load_language_model,
    new_language_model,
    save_language_model,
    summed_loss,
)
from fairsisa.models.llama2c import read_llama2c, read_llama2c_tokenizer
from fairsisa.models.perplexity import perplexity
from fairsisa.models.step_checkpoints import keep_at, step_name
from fairsisa.settings import TrainerSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

WORDS, END, MASK = 24, 0, 1
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": WORDS}
WIDE |= {"intermediate_size": 48, "max_position_embeddings": 16}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": WORDS},
    "llama": {**WIDE, "num_key_value_heads": 1},
    "gpt_neox": WIDE,
    "bert": {**WIDE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
MASKING = Masking(mask_id=MASK, vocab_size=WORDS, special_ids=frozenset({END, MASK}), seed=3, share=0.3)
shapes = pytest.mark.parametrize("architecture", SHAPES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on several threads, and much slower where other programs want them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def masking_for(architecture: str) -> Masking | None:
    return MASKING if architecture == "bert" else None


def counting_blocks(num_documents: int = 20, length: int = 16) -> Blocks:
    """Documents that count upwards from 2 or from 13, as the generator says; with its end token, each has 12."""
    starts = np.random.default_rng(0).choice([2, 13], size=num_documents)
    rows = [list(range(start, start + 11)) for start in starts.tolist()]
    return pack_blocks([f"d{row}" for row in range(num_documents)], rows, length=length, end_id=END)


def tiny(architecture: str, seed: int = 0) -> Any:
    return new_language_model(architecture, SHAPES[architecture], seed)


def train(
    architecture: str,
    *,
    num_steps: int = 100,
    seed: int = 0,
    model: Any = None,
    callbacks: Any = (),
    logger: Any = False,
    **changes: Any,
) -> LanguageModule:
    settings = TrainerSettings(**{"learning_rate": 0.01, "log_every_n_steps": 5, **changes})
    schedule = Schedule(num_steps=num_steps, start=1.0, end=0.0, warmup=0.1)
    model = tiny(architecture, seed) if model is None else model
    data = BlockData(
        model, counting_blocks(), num_steps=num_steps, batch_size=4, seed=seed, masking=masking_for(architecture)
    )
    module = LanguageModule(model, settings, schedule, seed=seed)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        deterministic=True,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return module


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def naive_perplexity(model: Any, blocks: Blocks, masking: Masking | None) -> float:
    """One block, one position at a time, from Hugging Face's own inputs and outputs."""
    losses = []
    model.eval()
    for block in range(len(blocks)):
        if masking is None:
            read = blocks.block_tokens(block).tolist()
            asked = {place - 1: read[place] for place in range(1, len(read))}
        else:
            batch = collate_blocks(blocks, np.array([block]), masking=masking)
            read, targets = batch["tokens"][0].tolist(), batch["targets"][0].tolist()
            asked = {place: token for place, token in enumerate(targets) if token != NO_TARGET}
        with torch.no_grad():
            logits = model(torch.tensor([read])).logits[0].double()
        losses += [-torch.log_softmax(logits[place], dim=0)[token].item() for place, token in asked.items()]
    return math.exp(sum(losses) / len(losses))


@shapes
def test_each_shape_learns_a_small_corpus_and_twice_the_same_bit_for_bit(architecture):
    first, second = train(architecture), train(architecture)
    assert first.curve == second.curve
    assert same(first.model.state_dict(), second.model.state_dict())
    assert [step for step, _ in first.curve] == list(range(5, 105, 5))
    assert first.curve[-1][1] < 0.5 * first.curve[0][1]
    blocks, masking = counting_blocks(), masking_for(architecture)
    before, after = (perplexity(model, blocks, 8, masking=masking) for model in (tiny(architecture), first.model))
    assert after < 0.3 * before


def test_another_seed_gives_another_model():
    short = [train("gpt2", num_steps=3, seed=seed).model.state_dict() for seed in (0, 1)]
    assert not same(*short)
    assert same(tiny("llama", 4).state_dict(), tiny("llama", 4).state_dict())


def test_training_is_what_plain_pytorch_does():
    module = train("llama", num_steps=12, weight_decay=0.3, gradient_clip=0.5)
    model, blocks = tiny("llama"), counting_blocks()
    data = BlockData(model, blocks, num_steps=12, batch_size=4, seed=0)
    groups = [[p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False)]
    adamw = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.3}, {"params": groups[1], "weight_decay": 0.0}], fused=True
    )
    for step, (_, rows) in enumerate(data.plan):
        batch = collate_blocks(blocks, rows)
        labels = batch["tokens"].masked_fill(batch.get("mask", torch.ones_like(batch["tokens"])) == 0, -100)
        model(input_ids=batch["tokens"], attention_mask=batch.get("mask"), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in adamw.param_groups:
            group["lr"] = 0.01 * (1 - step / 12) * min(1.0, (step + 1) / 1.2)
        adamw.step()
        adamw.zero_grad()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_losses_and_learning_rates_are_logged():
    logged: list[tuple[int, dict[str, float]]] = []

    class Keeping(DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            logged.append((step, metrics))

    module = train("gpt2", num_steps=7, logger=Keeping())
    assert [step for step, _ in logged] == [5, 7]
    assert [(step, metrics["train_loss"]) for step, metrics in logged] == module.curve
    assert logged[0][1]["learning_rate"] == pytest.approx(0.01 * (1 - 4 / 7))


def test_a_training_that_diverges_is_stopped():
    with pytest.raises(TrainingError, match=r"lower trainer\.learning_rate"):
        train("gpt2", num_steps=40, learning_rate=1e30, gradient_clip=None)


@shapes
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_perplexity_is_that_of_a_naive_loop(architecture, batch_size):
    model, blocks, masking = tiny(architecture), counting_blocks(7), masking_for(architecture)
    assert len(set(blocks.lengths.tolist())) == 2
    model.train()
    found = perplexity(model, blocks, batch_size, masking=masking)
    assert model.training
    assert found == pytest.approx(naive_perplexity(model, blocks, masking), rel=1e-5)


def test_perplexity_of_even_odds_is_the_vocabulary_and_of_certain_error_is_infinite():
    model, blocks = tiny("gpt_neox"), counting_blocks()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()
    assert perplexity(model, blocks, 4) == pytest.approx(WORDS, rel=1e-6)
    never = pack_blocks(["a"], [[5, 6, 7]], length=4, end_id=END)
    head.bias = torch.nn.Parameter(torch.zeros(WORDS))
    with torch.no_grad():
        head.bias[9] = 1e6
    assert perplexity(model, never, 4) == math.inf


def test_one_batch_of_logits_is_held_at_a_time():
    model, held = tiny("gpt2"), []
    model.register_forward_hook(lambda module, inputs, output: held.append(tuple(output.logits.shape)))
    perplexity(model, counting_blocks(), 4)
    assert held == [(4, 16, WORDS)] * 3 + [(3, 16, WORDS)]


@shapes
def test_padding_changes_no_loss(architecture):
    model, masking = tiny(architecture).eval(), masking_for(architecture)
    blocks = counting_blocks(7)
    rows = np.arange(len(blocks))
    together = summed_loss(model, collate_blocks(blocks, rows, masking=masking))
    apart = [summed_loss(model, collate_blocks(blocks, rows[[row]], masking=masking)) for row in rows]
    assert together[1] == sum(count for _, count in apart)
    assert together[0].item() == pytest.approx(sum(loss.item() for loss, _ in apart), rel=1e-5)


@shapes
def test_checkpoints_are_kept_at_the_asked_steps_and_load_again(architecture, tmp_path):
    kept: dict[int, torch.Tensor] = {}
    probe = torch.arange(2, 14)[None]

    class Watching(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *rest: Any) -> None:
            training = module.model.training
            with torch.no_grad():
                kept[trainer.global_step] = module.model.eval()(probe).logits
            module.model.train(training)

    train(architecture, num_steps=8, callbacks=[keep_at([0, 3, 8], tmp_path / "kept"), Watching()])
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["step-000000", "step-000003", "step-000008"]
    kept[0] = tiny(architecture).eval()(probe).logits
    for step in (0, 3, 8):
        loaded = load_language_model(tmp_path / "kept" / step_name(step))
        assert not loaded.training
        torch.testing.assert_close(loaded(probe).logits, kept[step], rtol=0, atol=0)


def test_keeping_checkpoints_changes_no_training(tmp_path):
    (tmp_path / ".step-000002.partial").mkdir()
    plain, keeping = train("gpt2", num_steps=5), train("gpt2", num_steps=5, callbacks=[keep_at([2], tmp_path)])
    assert same(plain.model.state_dict(), keeping.model.state_dict())
    again = train("gpt2", num_steps=5, callbacks=[keep_at([2], tmp_path)])
    assert same(again.model.state_dict(), keeping.model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_training_goes_on_from_a_checkpoint_folder(tmp_path):
    start = train("gpt2", num_steps=6).model
    save_language_model(start, tmp_path / "start")
    loaded = train("gpt2", num_steps=6, model=load_language_model(tmp_path / "start"))
    assert same(loaded.model.state_dict(), train("gpt2", num_steps=6, model=start).model.state_dict())


def test_steps_that_do_not_come_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 0"):
        keep_at([-1], tmp_path)
    with pytest.raises(ConfigError, match="at least 0"):
        keep_at([], tmp_path)
    with pytest.raises(ConfigError, match="up to 3, where training ends, got 4"):
        train("gpt2", num_steps=3, callbacks=[keep_at([2, 4], tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path):
    save_language_model(tiny("gpt2"), tmp_path / "one")

    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="free disk space"):
        save_language_model(tiny("gpt2", 1), tmp_path / "one", Full())
    assert same(load_language_model(tmp_path / "one").state_dict(), tiny("gpt2").state_dict())


def test_folders_that_hold_no_language_model_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no \.safetensors file"):
        load_language_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="No config can be read"):
        load_language_model(tmp_path)
    config = transformers.AutoConfig.for_model("bert", **SHAPES["bert"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded as a language model"):
        load_language_model(tmp_path)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "headless")
    with pytest.raises(ModelError, match=r"lacks .* weights of a language model, cls"):
        load_language_model(tmp_path / "headless")


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'gpt2'"):
        new_language_model("gpt-2", {}, 0)
    with pytest.raises(ConfigError, match="'resnet' is no language model"):
        new_language_model("resnet", {}, 0)
    with pytest.raises(ConfigError, match=r"Unknown value 'n_layers' in the shape of gpt2\. Did you mean 'n_layer'"):
        new_language_model("gpt2", {"n_layers": 2}, 0)
    with pytest.raises(ConfigError, match="does not fit bert"):
        new_language_model("bert", {**WIDE, "num_attention_heads": 5}, 0)


def test_blocks_that_do_not_fit_a_model_are_refused():
    with pytest.raises(ConfigError, match=r"bert is a masked language model: pass masking=Masking"):
        perplexity(tiny("bert"), counting_blocks(), 2)
    with pytest.raises(ConfigError, match="gpt2 is a causal language model: leave masking out"):
        BlockData(tiny("gpt2"), counting_blocks(), num_steps=1, batch_size=1, seed=0, masking=MASKING)
    with pytest.raises(ConfigError, match="at most 16 tokens"):
        perplexity(tiny("gpt2"), counting_blocks(length=17), 2)
    foreign = pack_blocks(["a"], [[WORDS]], length=4, end_id=END)
    with pytest.raises(ConfigError, match=f"below the model's {WORDS}, got {WORDS}"):
        perplexity(tiny("llama"), foreign, 2)
    special = pack_blocks(["a"], [[MASK]], length=4, end_id=END)
    with pytest.raises(ConfigError, match="something to predict"):
        perplexity(tiny("bert"), special, 2, masking=MASKING)


@pytest.mark.real_data
def test_the_tiny_llama_knows_its_stories_as_well_as_its_author_says(data_root, tmp_path):
    folder = data_root / "models" / "stories260K"
    stories = read_documents(data_root / "tinystories_sample" / "tinystories_sample.txt.gz", name="stories")[:12]
    blocks = encode_blocks(stories, read_llama2c_tokenizer(folder / "tok512.bin"), length=256, end_id=1)
    save_language_model(read_llama2c(folder / "stories260K.bin"), tmp_path / "stories")
    loaded: Any = load_language_model(tmp_path / "stories")
    random = new_language_model("llama", {k: v for k, v in loaded.config.to_dict().items() if k in SHAPES["llama"]}, 0)
    assert perplexity(random, blocks, 4) > 400
    # llama2.c, doc/stories260K.md: validation loss 1.2968; these twelve are training stories of other lengths.
    assert math.log(perplexity(loaded, blocks, 4)) == pytest.approx(1.2968, abs=0.2)
