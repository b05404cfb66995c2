"""Bad command lines: one ConfigError that names key, value and nearest choice; nothing started."""

from pathlib import Path

import pytest
from tiny import check

from pai.cli import _one_line, _parse
from pai.errors import ConfigError
from pai.trust import TRUST_VARIABLE

UNKNOWN_CHOICES = [
    (["scorer=hst"], ["scorer", "'hst'", "did you mean 'hts'?", "grad_norm", "synflow"]),
    (["dataset=digit"], ["dataset", "'digit'", "did you mean 'digits'?"]),
    (["model=resnet200"], ["model", "'resnet200'", "did you mean 'resnet20'?", "vgg16"]),
    (["warmup=bn_stat"], ["warmup", "'bn_stat'", "did you mean 'bn_stats'?"]),
    (["schedule=one_shot"], ["schedule", "'one_shot'", "did you mean 'oneshot'?"]),
    (["training=defualt"], ["training", "'defualt'", "did you mean 'default'?"]),
    (["logger=wandbb"], ["logger", "'wandbb'", "did you mean 'wandb'?"]),
    (["+experiment=no_such"], ["experiment", "'no_such'"]),
    (["hydra/launcher=slurm"], ["hydra/launcher", "'slurm'", "basic"]),
    (["--config-name", "confg"], ["'confg'"]),
    (["scorer=SNIP"], ["scorer", "'SNIP'", "did you mean 'snip'?"]),
    (["warmup=bn"], ["warmup", "'bn'", "did you mean 'bn_"]),
]
NO_CHOICE = (
    [([f"{group}=null", "seed=3"], [group, "null"]) for group in ("dataset", "scorer", "logger")]
    + [
        (["warmup=true"], ["warmup: true is not a choice", "bn_batches, bn_exact, bn_stats, none"]),
        (["scorer=[snip,hts]"], ["scorer: [snip,hts] is 2 choices", "-m scorer=snip,hts"]),
    ]
    + [
        ([f"{group}=[[1],[2]]"], [group.strip("+"), "[[1],[2]] is not a choice"])
        for group in ("logger", "hydra/launcher", "+experiment")
    ]
)
TYPOS = [
    (["sparsty=0.5"], ["sparsty: unknown key", "did you mean 'sparsity'?"]),
    (["+sparsty=0.5"], ["sparsty: unknown key", "did you mean 'sparsity'?"]),
    (["++sparsty=0.5"], ["sparsty: unknown key", "did you mean 'sparsity'?"]),
    (["~sparsty"], ["sparsty", "did you mean 'sparsity'?"]),
    (["training.epoch=3"], ["training.epoch: unknown key", "'epochs'", "batch_size"]),
    (["model.dept=8"], ["model.dept: unknown key", "did you mean 'depth'?", "width"]),
    (["+model.num_classes=8"], ["model.num_classes: unknown key", "depth"]),
    (["training.optimizer.lrr=3"], ["training.optimizer.lrr: unknown", "'lr'", "momentum"]),
    (["+training.optimizer.lrr=3"], ["training.optimizer.lrr: unknown", "'lr'", "momentum"]),
    (["scoring.sample_per_class=3"], ["scoring.sample_per_class:", "'samples_per_class'"]),
    (["scorer=snip", "scorer.num_probes=3"], ["scorer.num_probes: unknown key", "temperature"]),
    (["scorer=random", "scorer.foo=2"], ["scorer.foo: unknown key (given 2) (known: no option)"]),
    (
        ["schedule.rounds=5"],
        [
            "schedule.rounds: unknown key (given 5); schedule=oneshot has no rounds, it is an "
            "option of schedule=exponential, force, iter_snip, linear, ntk_sap (known: no option)"
        ],
    ),
    (
        ["scorer=snip", "scorer.num_probes=3"],
        ["it is an option of scorer=hd, hp, hts (known: saliency, temperature, train_batchnorm)"],
    ),
    (["scorer=hts", "scorer.num_probs=3"], ["scorer.num_probs: unknown key", "'num_probes'"]),
    (["dataset.root=x"], ["dataset.root: unknown key", "image_size"]),
    (["-m", "seed=0,1", "sparsty=0.5"], ["sparsty: unknown key", "did you mean 'sparsity'?"]),
    (["hydra.run.dri=x"], ["hydra.run.dri"]),
    (["hydra.rnu.dir=x"], ["hydra.rnu"]),
    (["hydra.mode=FOO"], ["hydra.mode", "FOO", "RUN, MULTIRUN"]),
    (["hydra.job.nmae=x"], ["hydra.job.nmae"]),
    (["+foo.bar.baz=3"], ["foo: unknown key"]),
    (["scorer@model=hts"], ["scorer@model"]),
    (["epochs=3"], ["epochs: unknown key (given 3)", "did you mean training.epochs or "]),
    (["training.lr=0.1"], ["training.lr: unknown key", "training.optimizer.lr?", "(given 0.1)"]),
    (["training.num_probes=3"], ["training.num_probes:", "did you mean scorer.num_probes?"]),
    (["+seeds.init=1"], ["seeds.init: unknown key", "initialization, data, probes"]),
]
PLACES = [
    (["-m", "seed=0,1", "hydra.run.dir=x"], ["hydra.run.dir: has no effect with -m"]),
    (["hydra.sweep.dir=x"], ["hydra.sweep.dir: has no effect without -m"]),
    (["hydra.run.dir='~/x'"], ["hydra.run.dir: '~/x'", "without ~"]),
    (["-m", "seed=0,1", "hydra.sweep.dir='~/x'"], ["hydra.sweep.dir: '~/x'", "without ~"]),
    (["hydra.run.dir=~/x"], ["cannot be parsed", "spaces, commas or ~"]),
    (
        ["-m", "seed=0,1", "hydra.sweep.subdir=x"],
        ["hydra.sweep.subdir: the jobs seed=0 and seed=1 would share the directory"],
    ),
    (
        ["-m", "scorer=snip,magnitude", "hydra.sweep.subdir=${seed}"],
        ["hydra.sweep.subdir", "scorer=snip", "scorer=magnitude"],
    ),
]
MISSING = [
    (["~sparsity"], ["sparsity: missing"]),
    (["~scorer"], ["scorer: missing"]),
    (["~training.optimizer"], ["training.optimizer: missing"]),
    (["sparsity=???"], ["sparsity: missing; give it a value"]),
    (["dataset=imagefolder"], ["dataset.root: missing; give it a value"]),
    (["model=timm"], ["model.name: missing; give it a value"]),
    (["hydra.run.dir=???"], ["hydra.run.dir: missing"]),
    (["seed=${nope}"], ["seed", "'nope'"]),
    (["seed=${seed}"], ["seed", "ecursive"]),
    (["seed=${oc.env:NO_SUCH_VARIABLE}"], ["seed", "NO_SUCH_VARIABLE"]),
    (["seed=${no_such_resolver:1}"], ["seed", "no_such_resolver"]),
]
SYNTAX = [
    (["sparsity"], ["'sparsity' cannot be parsed", "key=value"]),
    (["seed=a=b"], ["'seed=a=b' cannot be parsed"]),
    (["seed=[1"], ["'seed=[1' cannot be parsed"]),
    ([" seed=1"], ["' seed=1' cannot be parsed"]),
    (["sparsity=0.9,0.5"], ["sparsity", "0.9,0.5", "add -m"]),
    (["scorer=snip,hts"], ["scorer", "snip,hts", "add -m"]),
    (["seed=range(0,3)"], ["seed", "range(0,3)", "add -m"]),
    (["--config-dir", "no_such_folder"], ["--config-dir", "no_such_folder"]),
    (["--config-path", "no_such_folder"], ["--config-path", "no_such_folder"]),
    (["--epochs", "3"], ["--epochs", "--help"]),
    (["--experimental-rerun", "job.pickle"], ["--experimental-rerun"]),
]
VALUES = [
    (["sparsity=1"], ["sparsity: 1 is not valid", "less than 1"]),
    (["sparsity=90"], ["sparsity: 90 is not valid", "the fraction removed, 0.9 for 90 %"]),
    (["sparsity=nan"], ["sparsity: nan is not valid"]),
    (["sparsity=abc"], ["sparsity: 'abc' is not valid", "number"]),
    (["sparsity=true"], ["sparsity: True is not valid"]),
    (["-m", "sparsity=0.5,1.5"], ["sparsity: 1.5 is not valid"]),
    (["seed=-1"], ["seed: -1 is not valid"]),
    (["seed="], ["seed: '' is not valid"]),
    (["scope=layr"], ["scope: 'layr' is not one of global, layer, ", "did you mean 'layer'?"]),
    (["scope=2:4"], ["scope: 2:4 removes 2 of every 4", "sparsity=0.9", "use sparsity=0.5"]),
    (["scope=4:2"], ["scope: N:M", "4:2"]),
    (["scope=no/mask.safetensors"], ["scope: 'no/mask.safetensors'", "no existing mask"]),
    (["scope=."], ["scope: mask.safetensors cannot be read as a mask"]),
    (["scope=3"], ["scope: 3 is not valid", "string"]),
    (
        ["scope=uniform_plus", "sparsity=0.9995"],
        ["scope: uniform_plus keeps at least 144", "'conv1.weight'", "lower sparsity"],
    ),
    (["device=tpu"], ["device: 'tpu' is not valid: it should be auto, cpu, mps, cuda or"]),
    (["device=cuda:77"], ["device: 'cuda:77' is not there", "auto"]),
    (["device=cuda:01"], ["device: 'cuda:01'"]),
    (["device=cuda:1000"], ["device: 'cuda:1000'"]),
    (["scoring.samples_per_class=1000"], ["scoring.samples_per_class: 1000", "125"]),
    (["dataset.val_fraction=2"], ["dataset", "val_fraction", "2"]),
    (["dataset.image_size=9"], ["dataset", "image_size", "9", "multiple of 8"]),
    (["dataset.crop_padding=-1"], ["dataset", "crop_padding", "-1"]),
    (["dataset=imagefolder", "dataset.root=no_such"], ["dataset.root", "no_such"]),
    (["dataset=cifar10", "dataset.root=x", "dataset.download=false"], ["dataset.root", "x"]),
    (["model.depth=9"], ["model", "depth", "9", "8, 14, 20"]),
    (["model.width=0"], ["model", "width", "0"]),
    (["model=vgg16"], ["model", "1x8x8", "dataset.image_size"]),
    (["+model._partial_=false"], ["model"]),
    (["model.stem_stride=0"], ["model", "stem_stride", "0"]),
    (["+model.image_size=8"], ["model.image_size: unknown key"]),
    (["model=vit_cifar", "model.patch_size=3"], ["model", "patch_size", "divide", "8", "3"]),
    (["model=timm", "model.name=resnet81"], ["model: name", "'resnet81'", "'resnet18'"]),
    (["model=vit_tiny"], ["model: name 'vit_tiny_patch16_224'", "16x16", "8x8", "image_size"]),
    (["model=timm", "model.name=crossvit_9_240"], ["model: does not fit", "dataset.image_size"]),
    (
        ["model=timm", "model.name=resnet10t", "+model.options.features_only=true"],
        ["model: gives outputs of shape list where (2, 10) is needed"],
    ),
    (["model=vit_tiny", "+model.options.img_size=8"], ["model: options", "img_size"]),
    (["schedule=linear", "schedule.rounds=0"], ["schedule", "rounds", "0"]),
    (["scorer=hts", "scorer.num_probes=0"], ["scorer", "num_probes", "0"]),
    (["scorer=hts", "scorer.temperature=0"], ["scorer", "temperature", "0"]),
    (["scorer.saliency=null"], ["scorer.saliency: None"]),
    (["warmup.statistics=run"], ["warmup.statistics: 'run'", "'running' or 'population'"]),
    (["logger.mode=onlin"], ["logger.mode: 'onlin'", "'online'"]),
    (["logger.init_timeout_s=0"], ["logger", "init_timeout_s", "0"]),
    (["training.epochs=1.5"], ["training.epochs: 1.5 is not valid"]),
    (["training.epochs=-1"], ["training", "epochs", "-1"]),
    (["training.optimizer=sgd"], ["training.optimizer"]),
    (["training.optimizer=null"], ["training.optimizer"]),
    (["training.optimizer.lr=-1"], ["training.optimizer", "lr", "-1"]),
    (["training.optimizer.momentum=-1"], ["training.optimizer", "momentum", "-1"]),
    (["training.optimizer.weight_decay=-1"], ["training.optimizer", "weight_decay", "-1"]),
    (["scorer._target_=os.system"], ["scorer._target_: 'os.system'", "trusted"]),
]
WRONG_KINDS = [
    (["+scorer._partial_=true"], ["scorer"]),
    (["~scorer", "+scorer={_target_:pai.masking.schedule.OneShot}"], ["scorer"]),
    (["~dataset", "+dataset={_target_:pai.warmup.NoWarmup}"], ["dataset"]),
    (["~logger", "+logger={_target_:pai.warmup.NoWarmup}"], ["logger"]),
    (
        [
            "~training.optimizer",
            "+training.optimizer={_target_:pai.training.lr_schedules.Constant}",
        ],
        ["training", "optimizer"],
    ),
]
# The sweeper that comes with Hydra cannot search a continuous range.
CANNOT_SWEEP = [(["-m", "sparsity=interval(0.1,0.9)"], ["sparsity", "interval(0.1,0.9)"])]
ALL = [
    *UNKNOWN_CHOICES, *NO_CHOICE, *TYPOS, *MISSING, *SYNTAX, *VALUES, *WRONG_KINDS, *CANNOT_SWEEP,
    *PLACES,
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), ALL, ids=[" ".join(case[0]) for case in ALL])
def test_a_mistake_is_named_before_anything_starts(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check(*arguments)
    message = _one_line(caught.value).partition("; the overrides were:")[0]
    assert [word for word in words if word not in message] == [], message
    assert list(tmp_path.iterdir()) == []


def test_the_message_names_the_faulty_key_among_many_overrides() -> None:
    with pytest.raises(ConfigError) as caught:
        check("seed=1", "scorer=snip", "sparsity=0.5", "training.epochs=lots", "model.width=8")
    assert str(caught.value) == (
        "training.epochs: 'lots' is not valid: input should be a valid integer"
    )


def test_two_mistakes_are_both_named() -> None:
    with pytest.raises(ConfigError, match=r"^seed: -1 .*; sparsity: 2|^sparsity: 2.*; seed: -1"):
        check("seed=-1", "sparsity=2")


def test_the_parser_never_exits_by_itself() -> None:
    with pytest.raises(ConfigError, match="--no-such-flag"):
        _parse(["--no-such-flag"])


def test_flags_may_stand_after_overrides() -> None:
    assert _parse(["seed=0,1", "-m"]).multirun


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("scorer/broken.yaml", "saliency: [1", ["YAML", "broken.yaml", "line 1"]),
        ("scorer/snip.yaml", "_target_: x", ["--config-dir", "snip.yaml", "named like a file"]),
        ("experiment/plain.yaml", "seed: 1", ["experiment", "# @package _global_"]),
    ],
)
def test_files_of_the_users_own_that_cannot_be_used(
    name: str, content: str, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(content)
    group, choice = name.removesuffix(".yaml").split("/")
    plus = "+" if group == "experiment" else ""
    with pytest.raises(ConfigError) as caught:
        check("--config-dir", str(tmp_path), f"{plus}{group}={choice}")
    assert [word for word in words if word not in str(caught.value)] == []


OWN = {
    "scorer/cubic.yaml": "_target_: users_own_parts.Range\nlow: 1\nhigh: 2\n",
    "model/small.yaml": "_target_: users_own_parts.small_model\n_partial_: true\n",
    "experiment/plain.yaml": "defaults:\n  - override /model: resnet20\n",
    "experiment/listed.yaml": (
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      scorer: [snip, random]\n"
    ),
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["scorer=cubic", "scorer.hihg=2"],
            "scorer.hihg: unknown key (given 2); did you mean 'high'? (known: low, high, kind)",
        ),
        (
            ["model=small", "model.width=50"],
            "model.width: unknown key (given 50); its file leaves this option out: write "
            "+model.width=50 (known: width)",
        ),
        (
            ["model=small", "model.num_classes=5"],
            "model.num_classes: unknown key (given 5) (known: width)",
        ),
        (
            ["+experiment=plain"],
            "experiment/plain: the first line of that file must be '# @package _global_'",
        ),
        (
            ["-m", "+experiment=listed"],
            "hydra.sweeper.params.scorer: ['snip', 'random'] is a list; several values are a "
            "comma-separated text: scorer: snip,random",
        ),
    ],
)
def test_what_is_wrong_with_files_of_the_users_own_is_told_as_for_pais(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "users_own_parts")
    for name, content in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        check("--config-dir", str(tmp_path), *arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "lists"),
    [
        (["scorer=snip,hts"], False), (["sparsity=0.5,0.9"], False),
        (["training=paper_cifar", "training.lr_schedule.milestones=1,2"], True),
    ],
)  # fmt: skip
def test_brackets_are_advised_only_where_a_list_stands(arguments: list[str], lists: bool) -> None:
    with pytest.raises(
        ConfigError, match=r"is several values; add -m to sweep over them"
    ) as caught:
        check(*arguments)
    assert ("brackets to make them a list" in str(caught.value)) == lists


def test_jobs_that_are_the_same_may_share_a_directory() -> None:
    check("-m", "seed=0,0")


@pytest.mark.parametrize("more", [["-m"], []])
def test_a_command_may_say_both_directories(more: list[str], tmp_path: Path) -> None:
    check(*more, f"hydra.run.dir={tmp_path}/a", f"hydra.sweep.dir={tmp_path}/b")
