from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from fairsisa.compression.classifier_student import (
    ClassifierStudent,
    StudentTask,
    TrainedStudent,
    student_network,
    train_student,
)
from fairsisa.compression.distilling import (
    DistillationWeights,
    attention_loss,
    hard_label_loss,
    hidden_cosine_loss,
    soft_target_loss,
)
from fairsisa.data.batches import training_batches
from fairsisa.data.encoding import Inputs
from fairsisa.errors import ConfigError, DataError, TrainingError
from fairsisa.execution import Event
from fairsisa.models.base import find_base
from fairsisa.models.batching import SliceData, collate, run_batched
from fairsisa.models.classifier import Classifier, Schedule, initial_state, load_trained
from fairsisa.models.fitting import fit_quietly
from fairsisa.models.network import build_network, logits_of
from fairsisa.models.whole import NetworkSpec, whole_network
from fairsisa.settings import ModelSettings, TrainerSettings
from makers import tokenizer_folder

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "initializer_range": 0.3,
    "vocab_size": 60,
}
CALM = TrainerSettings(
    max_epochs=2.5, batch_size=8, learning_rate=0.01, accelerator="cpu", precision="fp32", log_every_n_steps=3
)
SOFT = DistillationWeights()
ALL = DistillationWeights(soft=0.5, hard=0.25, hidden=2.0, attention=3.0, temperature=2.0)
HARD = DistillationWeights(soft=0.0, hard=1.0)
FLAT = Schedule(1, 1.0, 1.0, 0.0)
MLP = NetworkSpec(ModelSettings(kind="mlp", hidden=(8,)), None, num_features=4, num_classes=3, seed=2)
State = Mapping[str, torch.Tensor]

real_data = pytest.mark.real_data  # of which these read a vocabulary


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other cost more than these sizes compute
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spec(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> NetworkSpec:
    folder = tokenizer_folder(data_root, tmp_path_factory.mktemp("student"))
    asked = ModelSettings(base=str(folder), architecture="bert", shape=SHAPE, dropout=0.0, freeze_embeddings=False)
    return NetworkSpec(asked, find_base(asked), 0, num_classes=3, seed=5)


def changed(spec: NetworkSpec, seed: int | None = None, **model: Any) -> NetworkSpec:
    return replace(spec, model=replace(spec.model, **model), seed=spec.seed if seed is None else seed)


def built(spec: NetworkSpec) -> torch.nn.Module:
    return build_network(
        spec.model, spec.base, num_features=spec.num_features, num_classes=spec.num_classes, seed=spec.seed
    )


def teacher_of(spec: NetworkSpec) -> tuple[NetworkSpec, State]:
    spec = replace(spec, seed=77)
    return spec, initial_state(built(spec))


def texts(count: int = 40) -> Inputs:
    generator = np.random.default_rng(1)
    lengths = generator.integers(2, 7, size=count)
    names = tuple(f"e{row}" for row in range(count))
    tokens = generator.integers(5, 60, size=lengths.sum()).astype(np.int32)
    return Inputs(names, names, generator.integers(0, 3, size=count), tokens, np.cumsum([0, *lengths]))


def table(count: int = 40) -> Inputs:
    generator = np.random.default_rng(0)
    names = tuple(f"e{row}" for row in range(count))
    features = (3.0 + 2.0 * generator.normal(size=(count, 4))).astype(np.float32)
    return Inputs(names, names, generator.integers(0, 3, size=count), features=features)


def probabilities(network: torch.nn.Module, inputs: Inputs) -> np.ndarray:
    return run_batched(lambda batch: logits_of(network, batch).softmax(1), inputs, width=3, device="cpu")


def told_by(teacher: tuple[NetworkSpec, State], inputs: Inputs) -> Inputs:
    return inputs.with_targets(probabilities(whole_network(*teacher), inputs))


def task_of(spec: NetworkSpec, inputs: Inputs, weights: DistillationWeights = SOFT, **changes: Any) -> StudentTask:
    values = {"trainer": CALM, "pad_id": 0, "seed": 9, "member": "student", **changes}
    return StudentTask(spec=spec, inputs=inputs, weights=weights, **values)


def train(task: StudentTask, report: Callable[[Event], None] = lambda event: None) -> TrainedStudent:
    return train_student(task, report)


def train_quietly(pickled: bytes) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    return {name: value.numpy() for name, value in train(pickle.loads(pickled)).state.items()}  # noqa: S301


def loaded(task: StudentTask, state: State) -> torch.nn.Module:
    network = student_network(task.spec, task.num_layers, task.keep)
    load_trained(network, state)
    return network.eval()


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@real_data
@pytest.mark.parametrize("stored", [True, False])
def test_the_loss_of_a_batch_is_the_weighted_sum_of_the_formulas(spec, stored):
    teacher = whole_network(*teacher_of(spec))
    student = student_network(spec, 2).eval()
    inputs = texts()
    if stored:
        inputs = inputs.with_targets(np.random.default_rng(3).dirichlet(np.ones(3), size=len(inputs)))
    batch = collate(inputs, np.arange(8), 0)
    module = ClassifierStudent(student, initial_state(student), CALM, FLAT, weights=ALL, teacher=teacher)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        ours = student(input_ids=batch["tokens"], attention_mask=batch["mask"], **asked)
        theirs = teacher(input_ids=batch["tokens"], attention_mask=batch["mask"], **asked)
    logits = batch["teacher"].log() if stored else theirs.logits
    expected = (
        0.5 * soft_target_loss(ours.logits, logits, 2.0)
        + 0.25 * hard_label_loss(ours.logits, batch["labels"])
        + 2.0 * hidden_cosine_loss(ours.hidden_states, theirs.hidden_states, batch["mask"])
        + 3.0 * attention_loss(ours.attentions, theirs.attentions, batch["mask"])
    )
    assert module.batch_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    module.batch_loss(batch).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@real_data
def test_hard_labels_alone_are_plain_training_bit_for_bit(spec):
    spec = changed(spec, dropout=0.2)
    inputs = texts()
    task = task_of(spec, inputs, HARD)
    network = built(spec).train()
    batches = training_batches(inputs.lengths, round(2.5 * 40), batch_size=8, seed=9)
    plain = Classifier(network, initial_state(network), CALM, Schedule(len(batches), 1.0, 0.0, CALM.warmup))
    fit_quietly(plain, SliceData(inputs, batches, pad_id=0, bundle=1), accelerator="cpu", seed=9)
    made = train(task)
    assert same(made.state, plain.trained_state())
    assert made.curve == tuple(plain.curve)
    assert made.steps == len(batches) == 13


@real_data
def test_a_student_that_starts_as_its_teacher_has_nothing_to_learn(spec):
    teacher = teacher_of(spec)
    inputs = told_by(teacher, texts())
    student = whole_network(*teacher)
    module = ClassifierStudent(student, initial_state(student), CALM, FLAT, weights=SOFT)
    loss = module.batch_loss(collate(inputs, np.arange(20), 0))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-5
    quiet = replace(CALM, weight_decay=0.0, learning_rate=1e-5)
    made = train(task_of(spec, inputs, start="teacher", teacher=teacher, trainer=quiet))
    moved = max(float((made.state[name] - teacher[1][name]).abs().max()) for name in teacher[1])
    assert moved < 1e-5 * made.steps
    assert max(loss for _, loss in made.curve) < 1e-5


def busy_task(spec: NetworkSpec) -> StudentTask:
    teacher = teacher_of(spec)
    return task_of(changed(spec, dropout=0.1), told_by(teacher, texts()), ALL, teacher=teacher, num_layers=2)


@real_data
@pytest.mark.slow
def test_another_process_gives_the_same_bits(spec):
    task = busy_task(spec)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        there = pool.submit(train_quietly, pickle.dumps(task)).result()
    assert same(train(task).state, {name: torch.from_numpy(value) for name, value in there.items()})


@real_data
def test_a_student_is_its_task(spec):
    task = busy_task(spec)
    first = train(task)
    torch.manual_seed(123)
    assert same(first.state, train(task).state)
    assert not same(first.state, train(replace(task, seed=10)).state)


@real_data
def test_stored_targets_teach_what_the_live_teacher_would(spec):
    teacher = teacher_of(spec)
    calm = replace(CALM, learning_rate=1e-3)
    live = train(task_of(spec, texts(), teacher=teacher, trainer=calm))
    stored = train(task_of(spec, told_by(teacher, texts()), trainer=calm))
    assert [loss for _, loss in live.curve] == pytest.approx([loss for _, loss in stored.curve], rel=1e-3)
    ours, theirs = (probabilities(loaded(task_of(spec, texts(), HARD), made.state), texts()) for made in (live, stored))
    assert ours == pytest.approx(theirs, abs=1e-3)


@real_data
def test_a_teacher_with_dropout_is_deterministic(spec):
    teacher = teacher_of(changed(spec, dropout=0.5))
    weights = DistillationWeights(soft=1.0, hidden=1.0)
    drops, calm = (
        train(
            task_of(
                spec, texts(), weights, teacher=(replace(teacher[0], model=changed(spec, dropout=p).model), teacher[1])
            )
        )
        for p in (0.5, 0.0)
    )
    assert same(drops.state, calm.state)


def test_soft_targets_pull_a_student_to_its_teacher():
    spec, state = teacher_of(MLP)
    state = {name: 2.0 * value if value.ndim > 1 else value for name, value in state.items()}
    inputs = told_by((spec, state), table(200))
    task = task_of(MLP, inputs, trainer=replace(CALM, max_epochs=60.0, learning_rate=0.02))
    untrained = np.abs(probabilities(built(MLP), inputs) - inputs.targets).mean()
    made = train(task)
    pulled = np.abs(probabilities(loaded(task, made.state), inputs) - inputs.targets).mean()
    assert pulled < 0.1 * untrained
    assert made.curve[-1][1] < 0.02 * made.curve[0][1]


def test_a_tabular_student_standardises_what_it_learns_from():
    inputs = table()
    state = train(task_of(MLP, inputs, HARD)).state
    assert state["0.mean"].numpy() == pytest.approx(inputs.features.mean(axis=0), rel=1e-5)
    teacher = teacher_of(MLP)
    kept = train(task_of(MLP, inputs, HARD, start="teacher", teacher=teacher)).state
    assert torch.equal(kept["0.mean"], teacher[1]["0.mean"])


@real_data
def test_a_shallower_student_keeps_its_teachers_layers_and_says_all_of_itself(spec):
    own = changed(spec, freeze_embeddings=True, frozen_layers=1)
    teacher = teacher_of(spec)
    task = task_of(own, told_by(teacher, texts()), num_layers=2, start="teacher", teacher=teacher)
    state = train(task).state
    network = student_network(own, 2)
    assert state.keys() == network.state_dict().keys()
    layer = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(
        state["bert.embeddings.word_embeddings.weight"], teacher[1]["bert.embeddings.word_embeddings.weight"]
    )
    assert torch.equal(state[layer.format(0)], teacher[1][layer.format(0)])
    assert not torch.equal(state[layer.format(1)], teacher[1][layer.format(2)])
    assert state[layer.format(1)].numpy() == pytest.approx(teacher[1][layer.format(2)].numpy(), abs=0.1)
    assert network.config.num_hidden_layers == 2
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == {
        name for name, _ in network.named_parameters() if "embeddings" in name or ".layer.0." in name
    }


@real_data
def test_a_student_of_adapters_starts_from_what_they_became(spec):
    lora = changed(spec, trains="lora", lora_rank=2)
    state = {name: value + 0.3 for name, value in initial_state(built(lora)).items()}
    trainer = replace(CALM, max_epochs=0.2, learning_rate=1e-9)
    task = task_of(spec, texts(), HARD, start="teacher", teacher=(lora, state), trainer=trainer)
    ours = probabilities(loaded(task, train(task).state), texts())
    assert ours == pytest.approx(probabilities(whole_network(lora, state), texts()), abs=1e-5)


@real_data
def test_bf16_trains_fp32_masters(spec):
    teacher = teacher_of(spec)
    half, full = (
        train(
            task_of(spec, told_by(teacher, texts()), ALL, teacher=teacher, trainer=replace(CALM, precision=precision))
        )
        for precision in ("bf16", "fp32")
    )
    assert {value.dtype for value in half.state.values() if value.is_floating_point()} == {torch.float32}
    moved = [value for value in half.state.values() if not torch.equal(value, value.bfloat16().float())]
    assert len(moved) > 20
    assert half.curve[-1][1] == pytest.approx(full.curve[-1][1], rel=0.1)


@real_data
def test_frozen_weights_stay_fp32_where_the_student_computes_in_bf16(spec):
    own = changed(spec, freeze_embeddings=True)
    made = train(task_of(own, texts(), HARD, trainer=replace(CALM, precision="bf16")))
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(made.state[name], built(own).state_dict()[name])


def test_progress_is_told_as_events():
    events: list[Event] = []
    made = train(task_of(MLP, table(), HARD), events.append)
    assert {(event.kind, event.constituent, event.slice) for event in events} == {("metrics", "student", 0)}
    assert [(event.step, event.values["train_loss"]) for event in events] == list(made.curve)
    assert made.seconds > 0


def test_what_a_task_lacks_is_named():
    with pytest.raises(ConfigError, match="need a constituent as teacher, got none"):
        task_of(MLP, table())
    with pytest.raises(ConfigError, match="need a constituent as teacher, got none"):
        task_of(MLP, table(), HARD, start="teacher")
    with pytest.raises(ConfigError, match="Expected start to be one of base, teacher"):
        task_of(MLP, table(), HARD, start="zero")
    with pytest.raises(DataError, match="Expected examples for student to learn from"):
        task_of(MLP, table().take([]), HARD)
    with pytest.raises(ConfigError, match=r"max_epochs=0\.001 of 40 examples is no example"):
        train(task_of(MLP, table(), HARD, trainer=replace(CALM, max_epochs=0.001)))
    with pytest.raises(ConfigError, match="num_layers=1 is for text models"):
        student_network(MLP, 1)


@real_data
def test_teachers_that_do_not_fit_are_refused(spec):
    head = replace(changed(spec, trains="head"), num_features=16)
    teacher = (head, initial_state(built(head)))
    with pytest.raises(ConfigError, match="a head over the base's own frozen encoder: set start=base"):
        train(task_of(spec, texts(), HARD, start="teacher", teacher=teacher))
    with pytest.raises(ConfigError, match=r"set model\.trains=full"):
        student_network(head)
    narrow = changed(spec, shape={**SHAPE, "hidden_size": 8})
    with pytest.raises(ConfigError, match="start=teacher needs a student of the teacher's shape"):
        train(task_of(narrow, texts(), HARD, start="teacher", teacher=teacher_of(spec)))
    with pytest.raises(ConfigError, match=r"distillation\.hidden needs the student's hidden_states"):
        train(task_of(MLP, table(), DistillationWeights(hard=1.0, soft=0.0, hidden=1.0), teacher=teacher_of(MLP)))


def test_a_student_that_diverges_is_an_error():
    wild = replace(CALM, learning_rate=1e30, gradient_clip=None, warmup=0.0)
    with pytest.raises(TrainingError, match=r"student diverged: .* Lower trainer\.learning_rate"):
        train(task_of(MLP, table(), HARD, trainer=wild))


def test_a_student_that_stops_early_is_an_error(monkeypatch):
    fit = pl.Trainer.fit

    def stopping(self: Any, model: Classifier, **kwargs: Any) -> None:
        fit(self, model, **kwargs)
        model.num_steps_done -= 1

    monkeypatch.setattr(pl.Trainer, "fit", stopping)
    with pytest.raises(TrainingError, match=r"student stopped after 12 of 13 steps: run the same command again"):
        train(task_of(MLP, table(), HARD))


def test_an_interruption_is_one_of_the_keyboard():
    def interrupt(event: Event) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train(task_of(MLP, table(), HARD), interrupt)
