"""RemasteredDDP on one process: the model's own step inside the reduction, what is refused, and what stays reachable."""

from __future__ import annotations

import contextlib
import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from itkit.criterion import CrossEntropyLoss, DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from itkit.errors import ConfigError, TrainingError
from itkit.mm.mmeng_PlugIn import RemasteredDDP
from itkit.mm.model_state import unwrap
from itkit.mm.optim import OptimWrapper
from itkit.mm.precision import AutocastOptimWrapper
from itkit.mm.strategies.log_means import LogMeans
from itkit.registry import MODEL_WRAPPERS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))


@pytest.fixture(scope="module", autouse=True)
def _group_of_one(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


class Line(BaseModel):
    """Two layers; `step` stands for what a user writes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        self.contexts: list[bool] = []

    def forward(self, x, mode="tensor"):
        self.contexts.append(torch.is_autocast_enabled("cpu"))
        out = self.last(torch.tanh(self.first(x)))
        return {"loss_square": out.float().square().mean()} if mode == "loss" else out

    def loss(self, data):
        return self.last(torch.tanh(self.first(data["x"]))).square().mean()


def data(seed: int = 0) -> dict:
    return {"x": torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))}


def wrapper_of(model: nn.Module, kind=OptimWrapper, **options) -> OptimWrapper:
    return kind(optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **options)


def weights(model: nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in unwrap(model).state_dict().items()}


def numbers(values: dict) -> dict:
    return {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- the wrapper as a module ----


def test_it_is_registered_and_a_wrapper_of_pytorch_around_the_very_model():
    model = Line()
    wrapped = MODEL_WRAPPERS.build({"type": "RemasteredDDP", "module": model})
    assert isinstance(wrapped, RemasteredDDP)
    assert isinstance(wrapped, DistributedDataParallel)
    assert is_model_wrapper(wrapped)
    assert wrapped.module is model
    assert unwrap(wrapped) is model
    assert [name.removeprefix("module.") for name in wrapped.state_dict()] == list(model.state_dict())


def test_attributes_of_the_model_are_reachable_and_errors_inside_properties_stay_themselves():
    class Rich(Line):
        classes = ("a", "b")

        @property
        def width(self):
            return self.first.out_features

        @property
        def breaks(self):
            raise ValueError("the reason")

        @property
        def breaks_quietly(self):
            return None.missing

    wrapped = RemasteredDDP(Rich())
    assert wrapped.classes == ("a", "b")
    assert wrapped.width == 3
    assert wrapped.first is wrapped.module.first
    assert wrapped.loss(data()).ndim == 0
    with pytest.raises(ValueError, match="the reason"):
        _ = wrapped.breaks
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'missing'"):
        _ = wrapped.breaks_quietly
    with pytest.raises(AttributeError, match="'Rich' object has no attribute 'nonsense'"):
        _ = wrapped.nonsense
    assert not hasattr(wrapped, "nonsense")


def test_losses_asked_for_through_the_wrapper_are_reduced_and_without_gradients_are_the_models():
    wrapped, reduced = RemasteredDDP(Line()), []
    wrapped.register_comm_hook(None, _counting(reduced))
    loss = wrapped.loss(data())
    assert torch.equal(loss, wrapped.module.loss(data()))
    assert isinstance(wrapped.module, Line)
    loss.backward()
    assert reduced == [0]
    with torch.no_grad():
        assert wrapped.loss(data()) == loss
    wrapped.module.loss(data()).backward()
    assert reduced == [0], "past the wrapper nothing is reduced, or the first count would prove nothing"


def test_calls_and_evaluation_steps_are_the_models():
    wrapped = RemasteredDDP(Line())
    x = data()["x"]
    assert torch.equal(wrapped(x), wrapped.module(x))
    wrapped.module.val_step = lambda batch: ("validated", batch)
    wrapped.module.test_step = lambda batch: ("tested", batch)
    assert wrapped.val_step(1) == ("validated", 1)
    assert wrapped.test_step(2) == ("tested", 2)
    wrapped.eval()
    assert not wrapped.module.training


def test_a_model_on_a_cpu_may_be_wrapped_as_the_runner_of_mmengine_does_it():
    wrapped = MODEL_WRAPPERS.build({"type": "RemasteredDDP"}, default_args={"device_ids": [0], "module": Line()})
    assert wrapped.device_ids is None
    assert wrapped(data()["x"]).shape == (4, 1)


def test_a_model_without_a_step_is_refused():
    with pytest.raises(ConfigError, match=r"Linear has no train_step\(data, optim_wrapper\)"):
        RemasteredDDP(nn.Linear(1, 1))


# ---- steps ----


class OwnStep(Line):
    """Two forwards, one loss, the learning rate looked at."""

    def train_step(self, data, optim_wrapper):
        with optim_wrapper.optim_context(self):
            self.contexts.append(torch.is_autocast_enabled("cpu"))
            one, two = self.loss(data), self.loss({"x": -data["x"]})
        self.contexts.append(torch.is_autocast_enabled("cpu"))
        assert isinstance(optim_wrapper, OptimWrapper.__mro__[1])
        rate = optim_wrapper.get_lr()["lr"][0] + 0 * optim_wrapper.param_groups[0]["lr"]
        optim_wrapper.update_params(one + 2 * two)
        return {"loss": one + 2 * two, "one": one, "rate": rate}


@pytest.mark.parametrize("kind", [Line, OwnStep])
@pytest.mark.parametrize("options", [{}, {"accumulative_counts": 2}, {"clip_grad": {"max_norm": 0.1}}])
def test_its_step_trains_as_the_model_alone_does(kind, options):
    plain, model = kind(), kind()
    wrapped = RemasteredDDP(model)
    one, other = wrapper_of(plain, **copy.deepcopy(options)), wrapper_of(model, **options)
    for wrapper in (one, other):
        wrapper.initialize_count_status(plain, 0, 5)
    for i in range(5):
        expected = plain.train_step(data(i), optim_wrapper=one)
        found = wrapped.train_step(data(i), optim_wrapper=other)
        assert numbers(expected) == numbers(found)
        assert same(weights(plain), weights(wrapped))
    assert plain.contexts == model.contexts


def test_autocast_holds_where_the_model_asks_for_it_and_nowhere_else():
    wrapped = RemasteredDDP(OwnStep())
    wrapped.train_step(data(), optim_wrapper=wrapper_of(wrapped.module, AutocastOptimWrapper))
    assert wrapped.module.contexts == [True, False]
    wrapped = RemasteredDDP(Line())
    wrapped.train_step(data(), optim_wrapper=wrapper_of(wrapped.module, AutocastOptimWrapper))
    assert wrapped.module.contexts == [True]


def test_a_gradient_penalty_inside_the_step_is_allowed():
    class Penalised(Line):
        def train_step(self, data, optim_wrapper):
            x = data["x"].requires_grad_()
            loss = self.loss({"x": x})
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            optim_wrapper.update_params(loss + slope.square().sum())
            return {"loss": loss}

    wrapped, plain = RemasteredDDP(Penalised()), Penalised()
    wrapped.train_step(data(), optim_wrapper=wrapper_of(wrapped.module))
    plain.train_step(data(), optim_wrapper=wrapper_of(plain))
    assert same(weights(plain), weights(wrapped))


def test_reduction_happens_in_the_last_iteration_of_an_accumulation_only():
    wrapped = RemasteredDDP(Line())
    reduced = []
    wrapped.register_comm_hook(None, _counting(reduced))
    wrapper = wrapper_of(wrapped.module, accumulative_counts=3)
    wrapper.initialize_count_status(wrapped, 0, 8)
    history = []
    for i in range(8):
        before = len(reduced)
        wrapped.train_step(data(i), optim_wrapper=wrapper)
        history.append(len(reduced) > before)
    assert history == [False, False, True, False, False, True, False, True]  # MMEngine's rule: 8 ends a shorter window


def _counting(reduced: list):
    def hook(state, bucket):
        reduced.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    return hook


# ---- what is refused ----


class BackwardItself(Line):
    def train_step(self, data, optim_wrapper):
        self.loss(data).backward()
        optim_wrapper.update_params(self.loss(data))


class StepsTheOptimizer(Line):
    def train_step(self, data, optim_wrapper):
        self.loss(data).backward()
        optim_wrapper.optimizer.step()


class StepsTheWrapper(Line):
    def train_step(self, data, optim_wrapper):
        optim_wrapper.backward(self.loss(data))
        optim_wrapper.step()


class ClearsGradients(Line):
    def train_step(self, data, optim_wrapper):
        optim_wrapper.zero_grad()
        optim_wrapper.update_params(self.loss(data))


class HasAnOptimizer(Line):
    def __init__(self):
        super().__init__()
        self.own = torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_step(self, data, optim_wrapper):
        self.loss(data).backward()
        self.own.step()
        return {}


class UpdatesTwice(Line):
    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(self.loss(data))
        optim_wrapper.update_params(self.loss(data))


class NeverUpdates(Line):
    def train_step(self, data, optim_wrapper):
        return {"loss": self.loss(data)}


class GivesANumber(Line):
    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(self.loss(data).item())


class GivesAConstant(Line):
    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(self.loss(data).detach())


class GivesAVector(Line):
    def train_step(self, data, optim_wrapper):
        optim_wrapper.update_params(self.last(torch.tanh(self.first(data["x"]))))


REFUSED = {
    BackwardItself: r"BackwardItself.train_step runs a backward pass itself. With several processes",
    StepsTheOptimizer: r"StepsTheOptimizer.train_step uses optim_wrapper.optimizer, which is not possible here",
    StepsTheWrapper: r"StepsTheWrapper.train_step uses optim_wrapper.backward",
    ClearsGradients: r"ClearsGradients.train_step uses optim_wrapper.zero_grad",
    HasAnOptimizer: r"HasAnOptimizer.train_step steps an optimizer itself \(AdamW\)",
    UpdatesTwice: r"UpdatesTwice.train_step calls optim_wrapper.update_params more than once",
    NeverUpdates: r"NeverUpdates.train_step does not call optim_wrapper.update_params",
    GivesANumber: r"GivesANumber.train_step gives optim_wrapper.update_params a float; it needs one differentiable",
    GivesAConstant: r"update_params shape \(\), requires_grad=False",
    GivesAVector: r"update_params shape \(4, 1\), requires_grad=True",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_step_that_would_bypass_the_reduction_is_refused_and_trains_nothing(kind):
    wrapped = RemasteredDDP(kind())
    before = weights(wrapped)
    wrapper = wrapper_of(wrapped.module)
    with pytest.raises(ConfigError, match=REFUSED[kind]):
        wrapped.train_step(data(), optim_wrapper=wrapper)
    assert same(before, weights(wrapped))
    assert wrapper.inner_count == 0
    assert isinstance(wrapped.module, kind)  # itself again, whatever was raised


def test_a_second_backward_is_seen_also_while_gradients_are_added_up():
    class Later(Line):
        steps = 0

        def train_step(self, data, optim_wrapper):
            self.steps += 1
            if self.steps == 2:
                self.loss(data).backward()
            optim_wrapper.update_params(self.loss(data))

    wrapped = RemasteredDDP(Later())
    wrapper = wrapper_of(wrapped.module, accumulative_counts=4)
    wrapped.train_step(data(), optim_wrapper=wrapper)
    with pytest.raises(ConfigError, match="Later.train_step runs a backward pass itself"):
        wrapped.train_step(data(), optim_wrapper=wrapper)


def test_optimizers_elsewhere_step_again_after_a_refusal():
    wrapped = RemasteredDDP(HasAnOptimizer())
    with contextlib.suppress(ConfigError):
        wrapped.train_step(data(), optim_wrapper=wrapper_of(wrapped.module))
    wrapped.module.own.step()


def test_several_optimizers_and_foreign_parameters_are_refused():
    wrapped = RemasteredDDP(Line())
    several = OptimWrapperDict(a=wrapper_of(wrapped.module.first), b=wrapper_of(wrapped.module.last))
    with pytest.raises(ConfigError, match="trains with one optimizer, found OptimWrapperDict"):
        wrapped.train_step(data(), optim_wrapper=several)
    model = Line()
    model.first.requires_grad_(False)
    wrapped = RemasteredDDP(model)
    model.first.requires_grad_(True)
    with pytest.raises(
        ConfigError, match=r"trains 2 parameters whose gradients are not reduced \(shapes \(3, 2\), \(3,\)\)"
    ):
        wrapped.train_step(data(), optim_wrapper=wrapper_of(model))


# ---- parameters without a gradient ----


class Branches(Line):
    """Uses its last layer's twin in even steps only."""

    def __init__(self):
        super().__init__()
        self.spare, self.calls = nn.Linear(3, 1), 0

    def forward(self, x, mode="tensor"):
        self.calls += 1
        hidden = torch.tanh(self.first(x))
        return {"loss": ((self.spare if self.calls % 2 else self.last)(hidden) - 1).square().mean()}


@pytest.mark.parametrize("accumulate,steps", [(1, 1), (2, 2)])
def test_a_parameter_without_gradient_is_named_before_anything_is_updated(accumulate, steps):
    wrapped = RemasteredDDP(Branches())
    before = weights(wrapped)
    wrapper = wrapper_of(wrapped.module, accumulative_counts=accumulate, clip_grad={"max_norm": 1.0})
    lacking = "last.weight, last.bias" if steps % 2 else "spare.weight, spare.bias"
    for i in range(steps - 1):
        wrapped.train_step(data(i), optim_wrapper=wrapper)
    message = rf"2 trained parameters of Branches got no gradient: {lacking}\. .*find_unused_parameters = True"
    with pytest.raises(TrainingError, match=message):
        wrapped.train_step(data(), optim_wrapper=wrapper)
    assert same(before, weights(wrapped))


def test_with_the_option_it_trains_as_the_model_alone():
    plain, wrapped = Branches(), RemasteredDDP(Branches(), find_unused_parameters=True)
    one, other = wrapper_of(plain), wrapper_of(wrapped.module)
    for i in range(4):
        plain.train_step(data(i), optim_wrapper=one)
        wrapped.train_step(data(i), optim_wrapper=other)
    assert same(weights(plain), weights(wrapped))


# ---- which losses are means over the samples ----


@pytest.mark.parametrize(
    "loss,is_mean",
    [
        (CrossEntropyLoss(), True),
        (CrossEntropyLoss(label_smoothing=0.1), True),
        (CrossEntropyLoss(class_weights=(0.2, 1.0, 3.0)), False),
        (CrossEntropyLoss(ignore_index=2), False),
        (DiceLoss(), True),
        (DiceLoss(class_weights=(0.2, 1.0, 3.0)), True),
        (DiceLoss(ignore_index=2), True),
        (DiceLoss(batch_dice=True), False),
        (DiceCELoss(), True),
        (DiceCELoss(batch_dice=True), False),
        (TverskyLoss(), True),
        (FocalLoss(), True),
        (FocalLoss(ignore_index=2), False),
        (FocalLoss(class_weights=(0.2, 1.0, 3.0)), False),
        (TverskyLoss(class_weights=(0.2, 1.0, 3.0)), True),
        (DiceCELoss(class_weights=(0.2, 1.0, 3.0)), False),
    ],
    ids=lambda value: str(value),
)
def test_which_losses_of_a_global_batch_are_the_mean_over_its_parts(loss, is_mean):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.stack([torch.rand(4, 4, 4, generator=generator) < 0.15 * (i + 1) for i in range(6)]).long()
    labels[:, 0] = 2 * labels[:, 0]
    whole = loss.double()(logits, labels)
    parts = torch.stack([loss(x, y) for x, y in zip(logits.split(2), labels.split(2), strict=True)]).mean()
    assert (abs(float(whole - parts)) < 1e-12) == is_mean


# ---- numbers of a step ----


def test_means_keep_types_and_leave_what_is_no_number():
    means = LogMeans()
    values = {
        "a": torch.tensor(2.0),
        "b": 3,
        "c": "text",
        "d": torch.zeros(2),
        "e": True,
        "f": torch.tensor([1], dtype=torch.int64),
    }
    found = means(values)
    assert list(found) == list(values)
    assert found["a"].dtype == torch.float32
    assert found["b"] == 3.0
    assert found["c"] == "text"
    assert found["d"].shape == (2,)
    assert found["e"] is True
    assert found["f"].tolist() == [1]
    assert means({"new": 1.0}) == {"new": 1.0}
    assert means(None) is None


def test_a_compiled_step_is_the_models_own():
    from itkit.mm.runner import ExperimentRunner

    wrapped = RemasteredDDP(Line())
    runner = ExperimentRunner.__new__(ExperimentRunner)
    runner.model, runner.cfg, runner.logger = wrapped, {"compile": {"backend": "eager"}}, _Silent()
    runner._maybe_compile("train_step")
    assert runner.model is wrapped
    assert "train_step" in vars(wrapped.module)
    plain = Line()
    wrapped.train_step(data(), optim_wrapper=wrapper_of(wrapped.module))
    plain.train_step(data(), optim_wrapper=wrapper_of(plain))
    assert same(weights(plain), weights(wrapped))


class _Silent:
    def info(self, text):
        pass
