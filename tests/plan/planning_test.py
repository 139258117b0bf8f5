"""The plan against what training does here, and two TPU topologies with their own compiler."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax import cli, sharding
from seed_jax.data.shards.records import Record
from seed_jax.errors import UserError
from seed_jax.plan import planning, topology
from seed_jax.plan.executed_flops import executed_flops
from seed_jax.train import auto_settings, compiled_step, loop
from seed_jax.train.stages import registry
from seed_jax.train.state import create
from tests.data.batches import mixtures
from tests.support import configs, golden

ROOT = Path(__file__).parents[2]


def tiny(**changes):
    options = {
        "data.demo": False,
        "data.vocabulary": str(golden.path("text_tokenizer/tokenizer")),
        "data.mixture": ({"path": "unused", "task": "image_text_pair"},),
        "data.sequence_length": 64,
    }
    return configs.config_for("pretrain:tiny", **(options | changes))


@pytest.fixture(scope="module")
def cpu():
    return topology.find("cpu:8")


def bare(text: str) -> str:
    """Return a program's text without where its operations come from."""
    text = text[text.index("\n%") :] if "\n%" in text else text
    return re.sub(r",? ?metadata=\{[^}]*\}|stack_frame_id=\d+", "", text)


@pytest.mark.slow
def test_training_runs_the_program_that_was_planned(tmp_path, cpu):
    rng = np.random.default_rng(0)
    records = [
        Record(f"folder/{n}", "folder", (rng.integers(0, 128, 32).astype(np.uint16), "a dog"), {}) for n in range(9)
    ]
    path = str(mixtures.write(tmp_path / "pairs", records))
    component = {"path": path, "task": "image_text_pair", "weight": 1.0, "params": {"max_length": 64}}
    config = tiny(steps=1, **{"mesh.fsdp": 4, "mesh.tensor": 2, "data.mixture": (component,)})
    loop.train(config, tmp_path / "run")
    plan = planning.make(config, cpu, str(tmp_path / "planned.txt"))
    ran, planned = ((tmp_path / name).read_text() for name in ("run/step.hlo.txt", "planned.txt"))
    assert bare(ran) == bare(planned)
    assert "dot(" in bare(ran)
    resolved = json.loads((tmp_path / "run/run.json").read_text())
    assert resolved["model"]["remat"] == plan.remat == "none"


@pytest.mark.optimized
@pytest.mark.slow
def test_the_memory_planned_is_the_memory_taken(cpu):
    """What a step keeps, as planned, against the bytes of the arrays that a run makes on a device."""
    config = tiny(**{"mesh.fsdp": 4, "mesh.tensor": 2})
    plan = planning.make(config, cpu)
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, init=""))
    stage = registry.make_stage(config)
    program = compiled_step.make_program(config, stage, mesh)
    with jax.set_mesh(mesh):
        state, frozen = create(stage, program.optimizer, program.abstract, jax.random.key(0))
    held = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert plan.memory.parameters == held((state.trained, frozen))
    assert plan.memory.optimizer == held(state.optimizer)
    assert plan.memory.peak > plan.memory.parameters + plan.memory.optimizer
    assert plan.fits


def test_work_is_counted_through_loops_and_recomputation():
    x, w = jnp.ones((8, 16)), jnp.ones((16, 16))

    def layers(w, x):
        body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ w), None), policy=jax.checkpoint_policies.nothing_saveable)
        return jax.lax.scan(body, x, None, length=5)[0].sum()

    once = 2 * 8 * 16 * 16
    forward = executed_flops(jax.jit(layers).trace(w, x))
    assert forward.matmuls == 5 * once
    # Backward: the product again, and one each for the gradients of its two factors.
    assert executed_flops(jax.jit(jax.grad(layers)).trace(w, x)).matmuls == 4 * 5 * once


@pytest.mark.slow
def test_the_search_puts_the_cheapest_first(cpu, monkeypatch):
    """Every layout is tried; what does not fit or does not work is left out. The plans themselves are stood in for."""
    tried, said = [], []
    any_plan = planning.make(tiny(), cpu)

    def make(config, topology):
        rows = config.data.batch_size * config.mesh.tensor // topology.chips // config.optimizer.accumulation
        layout = {"mesh": {"tensor": config.mesh.tensor}, "remat": config.model.remat, "rows": rows}
        tried.append(tuple(layout.values())[1:])
        if config.mesh.tensor == 4:
            raise UserError("4 does not divide the heads.")
        matmuls = (3.0 if config.model.remat == "full" else 2.0) / rows
        memory = dataclasses.replace(any_plan.memory, peak=rows, usable=3)
        time = dataclasses.replace(any_plan.time, matmuls=matmuls, kernels=0.0, overlapped=0.0, exposed=0.0)
        return dataclasses.replace(any_plan, memory=memory, time=time, **layout)

    monkeypatch.setattr(planning, "make", make)
    plans = planning.search(tiny(**{"data.batch_size": 16}), cpu, said.append)
    rows = (1, 2, 1, 2, 4, 1, 2, 4, 8)  # of tensor 1, 2 and 4
    assert sorted(tried) == sorted((remat, count) for remat in ("full", "save_qkv") for count in rows)
    found = [(plan.remat, plan.rows) for plan in plans]
    assert found == [
        (remat, count) for remat, count in (("save_qkv", 2), ("full", 2), ("save_qkv", 1), ("full", 1)) for _ in "12"
    ]
    assert len(said) == len(tried)
    assert said.count("skipped: 4 does not divide the heads.") == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v5e-64"], ["v5e-64", "v5e:16x16"]),
        (["--topology", "v5e:8x8x8"], ["v5e has 2 dimensions"]),
        (["--topology", "cpu:8", "--mesh", "fsdp=3"], ["fsdp 3", "8 device"]),
        (["--topology", "cpu:8", "--mesh", "model=8"], ["--mesh model=8"]),
        (["--topology", "cpu:8", "--batch", "6"], ["data.batch_size is 6", "multiple of 8"]),
        (["--topology", "cpu:8", "--remat", "some"], ["'some'"]),
        (["--topology", "cpu:8", "--set", "modell.remat=full"], ["modell.remat is not an option"]),
        (["--topology", "cpu:8", "--slices", "0"], ["--slices is 0"]),
        (["--topology", "cpu:99"], ["99 devices"]),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_compiled(capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(
        compiled_step.TrainProgram, "trace", lambda self: pytest.fail("compiled") if "some" not in words else None
    )
    code = cli.main(["plan", "--config", str(ROOT / "configs/pretrain.py:tiny"), *arguments])
    message = capsys.readouterr().err.strip()
    assert code == 2
    assert "\n" not in message
    assert all(word in message for word in words)


def test_the_command_prints_a_plan(capsys):
    arguments = [
        "--config",
        str(ROOT / "configs/pretrain_full.py:tiny"),
        "--topology",
        "gb200:8",
        "--mesh",
        "fsdp=4,tensor=2",
    ]
    assert cli.main(["plan", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "8 chips, mesh replica 1 x fsdp 4 x tensor 2" in printed
    assert re.search(r"all-gather over fsdp +\d+", printed)
    assert "ESTIMATE" in printed
    assert "CPU's compiler" in printed
    assert "roofline" in printed
    assert cli.main(["plan", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["fits"]
    assert found["chips"] == 8


def test_a_plan_for_tpus_without_their_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"pip install 'seed-jax\[tpu\]'"):
        topology.find("v5e:2x2")


@pytest.mark.parametrize("name", ["cpu:0", "h200:99999999", "v5e:0x2", "v5p:999x999x999"])
def test_a_topology_has_some_chips_but_not_millions(name):
    with pytest.raises(UserError, match="chips in all slices"):
        topology.find(name)


@pytest.mark.parametrize(
    ("arguments", "key_words"),
    [
        (["--config", "quickstart"], "no single training stage"),
        (["--config", "eval"], "no single training stage"),
        (["--config", "pretrain:tiny", "--search", "--hlo", "program.txt"], "--hlo writes one program"),
        (["--config", "pretrain:tiny", "--hlo", "/nowhere/program.txt"], "/nowhere/program.txt does not exist"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments, key_words, capsys):
    assert cli.main(["plan", "--topology", "cpu:1", *arguments]) == 2
    assert key_words in capsys.readouterr().err


def test_what_is_left_open_is_filled_in(cpu):
    mesh = sharding.make_mesh({"fsdp": -1})
    config = configs.config_for("pretrain_full:8b", **{"data.batch_size": 64})
    resolved = auto_settings.resolve(config, mesh, topology.accelerators.by_name("v5e"))
    # 8 rows a device of 2048 tokens; at most 8192 tokens at a time.
    assert (resolved.optimizer.accumulation, resolved.model.attention) == (2, "splash")
    assert config.optimizer.accumulation == 0


def test_compiler_options_are_those_of_the_device_and_can_be_replaced_or_dropped(cpu):
    pytest.importorskip("libtpu")
    limit = "xla_tpu_scoped_vmem_limit_kib"

    def options(where, compiler=""):
        config = tiny(compiler=compiler, **{"mesh.fsdp": 4})
        mesh = sharding.make_mesh({"fsdp": 4}, where.devices[:4])
        return compiled_step.make_program(config, registry.make_stage(config), mesh).compiler_options

    v5e = topology.find("v5e:2x2")
    assert options(v5e)[limit] == "98304"
    assert options(v5e, f"{limit}=65536")[limit] == "65536"
    assert limit not in options(v5e, f"{limit}=")
    assert options(v5e, f"{limit}=")["xla_enable_async_all_gather"] == "true"
    assert options(cpu) == {}


def test_a_compiler_option_that_xla_does_not_know_is_named(cpu):
    config = tiny(compiler="xla_no_such_option=1")
    program = compiled_step.make_program(
        config, registry.make_stage(config), sharding.make_mesh({"fsdp": 8}, cpu.devices)
    )
    with pytest.raises(UserError, match=r"config\.compiler .*xla_no_such_option"):
        program.compile()


TPU_PLANS = """
import json, sys
from seed_jax.cli import main
for arguments in json.loads(sys.argv[1]):
    assert main(["plan", "--json", *arguments]) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_two_tpu_topologies_compile(tmp_path):
    """One slice with the attention kernel, and two slices; in a process of its own, as libtpu stays loaded."""
    config = ["--config", str(ROOT / "configs/pretrain_full.py:tiny"), "--set", "model.attention=splash"]
    runs = [
        [*config, "--topology", "v5e:4x4", "--batch", "16", "--set", "model.remat=full"],
        [*config, "--topology", "v5p:2x2x1", "--slices", "2", "--batch", "8"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", TPU_PLANS, json.dumps(runs)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads("{" + text) for text in ("\n" + done.stdout).split("\n{")[1:])
    assert (one["chips"], two["chips"], two["mesh"]["replica"]) == (16, 8, 2)
    kinds = {(row["kind"], row["axes"]) for row in one["collectives"]}
    assert ("all-gather", "fsdp") in kinds or ("collective-permute", "fsdp") in kinds
    assert one["memory"]["fits"]
    assert 0 < one["mfu"] < 1
    assert one["time"]["kernels"] > 0


@pytest.mark.parametrize("name", ["sft:tiny", "tokenizer_qformer:tiny", "tokenizer_codebook:tiny", "decoder:tiny"])
@pytest.mark.slow
def test_every_stage_is_planned(cpu, name):
    # The decoder's few latent channels do not divide over fsdp.
    changes = {} if name.startswith("sft") else {"data.batch_size": 8, "mesh.replica": 8, "mesh.fsdp": 1}
    plan = planning.make(configs.config_for(name, **changes), cpu)
    assert plan.fits
    assert plan.unit == ("tokens" if name.startswith("sft") else "images")
    assert plan.model_flops > 0
    assert plan.step_seconds < 60


@pytest.mark.parametrize(
    "name",
    [
        "pretrain:8b",
        "tokenizer_qformer:full",
        pytest.param("tokenizer_codebook:full", marks=pytest.mark.slow),
        pytest.param("decoder:full", marks=pytest.mark.slow),
    ],
)
def test_a_stage_of_full_size_is_constructed_without_its_files(name):
    config = auto_settings.resolve(configs.config_for(name), sharding.make_mesh({"fsdp": -1}), None)
    stage = registry.make_stage(config)
    shapes = jax.tree.leaves(sharding.unbox(stage.abstract_variables()))
    assert sum(leaf.size for leaf in shapes) > 1e9
    assert stage.batch_spec()
