"""Every benchmark still runs: the smallest shape of each. No time is asserted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cogitate.agent_decoder.model import gguf_file, loader
from gguf import GGUFReader
from rich.console import Console
from safetensors.torch import load_file

from tests.bench.decode import forms, random_model
from tests.bench.kv_memory import MINI
from tests.fakes.browser import needs_chromium
from tests.fakes.chat_model import write_tokenizer_files
from tests.fakes.embedding_model import write_embedding_model
from tests.fakes.envoy import envoy_binary
from tests.fakes.gguf_files import config_of, random_weights, write_checkpoint
from tests.fakes.sandbox import missing
from tests.fakes.tiny_model import write_tiny_model

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
}


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a process a share of the CPU")
def test_mixed_fleet(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "models")
    out = tmp_path / "rows.json"
    printed = run(
        "tests.bench.mixed_fleet", "--models", str(tmp_path / "models"), "--model", "tiny",
        "--gangs", "4", "--rate", "4", "--json", str(out),
    )  # fmt: skip
    assert "4/4" in printed
    (found,) = json.loads(out.read_text())["policies"].values()
    for one in found["runs"]:
        assert sum(share["agents"] for share in one["shares"]) == one["agents"]
        assert min(share["steps"] for share in one["shares"]) > 0


def test_step(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    shape = ("--prompt", "40", "--steps", "2", "--rounds", "1", "--builds", "1")
    assert "GFLOP/s" in run("tests.bench.step", *shape, "--json", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [row["way"].partition(",")[0] for row in rows][:4] == [*3 * ["native"], "torch"]
    assert all(row["prompt_ms"] > 0 and list(row["agents_ms"]) == ["1", "8", "16"] for row in rows)


def test_security_cost(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    printed = run("tests.bench.security_cost", "--rounds", "1", "--count", "5", "--json", str(out))
    assert "mutual TLS" in printed
    rows = json.loads(out.read_text())["rows"]
    assert [row["what"] for row in rows] == ["plaintext", "mutual TLS", "charging"]
    assert all(row["count"] == 5 and row["p50_us"] > 0 for row in rows)


def test_decode(tmp_path: Path) -> None:
    model, out = write_tiny_model(tmp_path), tmp_path / "rows.json"
    printed = run(
        "tests.bench.decode", str(model), "--engine", "cogitate:bfloat16", "--engine",
        "cogitate:int8", "--agents", "1,3", "--several", "2", "--prompt", "20", "--tokens", "4",
        "--rounds", "1", "--json", str(out), "--plot", str(tmp_path / "plot.png"),
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert [(r["engine"], r["contemplations"], r["agents"]) for r in rows] == [
        (engine, *shape)
        for shape in ((1, 1), (1, 3), (2, 8))
        for engine in ("cogitate bfloat16", "cogitate int8")
    ]
    assert all(r["tokens_per_s"] > 0 and r["first_token_s"] <= r["total_s"] for r in rows)
    assert all(r["floor_ms"] > 0 and len(r["runs"]) == r["rounds"] == 1 for r in rows)
    alone = [r for r in rows if r["contemplations"] == r["agents"] == 1]
    assert all(r["time_ratio_to_one"] == r["first_ratio_to_one"] == 1 for r in alone)
    assert "GFLOP/s" in printed and (tmp_path / "plot.png").stat().st_size > 1000


def test_forms_of_weights_hold_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GGUF is read back as the decoder does, W8A8 is multiplied out; the random model loads."""
    monkeypatch.setattr(forms, "FORMS", tmp_path / "forms")
    monkeypatch.setattr(random_model, "MODELS", tmp_path)
    monkeypatch.setattr(random_model, "SHAPES", {"small": SMALL})
    model = random_model.made("small", Console(quiet=True))
    loader.verify(model)
    weights = {n: w.float() for n, w in load_file(model / "model.safetensors").items()}
    for form, most in (("bf16.gguf", 0.0), ("q8_0.gguf", 0.005)):
        tensors = {t.name: t for t in GGUFReader(forms.made(model, form)).tensors}
        fields = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
        found = {
            gguf_file._weight_name(name): gguf_file._weight(name, tensor, fields).float()
            for name, tensor in tensors.items()
        }
        assert found.keys() == weights.keys()
        for name, weight in weights.items():
            assert (found[name] - weight).abs().max() <= most * weight.abs().max(), name
    quantised = load_file(forms.made(model, "w8a8") / "model.safetensors")
    for name, weight in weights.items():
        product = quantised[name].float() * quantised.get(f"{name}_scale", torch.ones(1))
        assert (product - weight).abs().max() <= 0.005 * weight.abs().max(), name


def test_kv_memory(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.kv_memory", "--agents", "4,8", "--prompt", "64", "--tokens", "32", "--json",
        str(out))  # fmt: skip
    for row in json.loads(out.read_text())["rows"]:
        assert abs(row["above_formula"]) < 0.05
        assert row["peak_blocks"] == 4 + 2 * row["agents"]


def test_many_gangs(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    run("tests.bench.many_gangs", "--gangs", "50", "--json", str(out))
    found = json.loads(out.read_text())
    assert found["endings"] == {"GangDone": 45, "Refused": 5}
    assert found["finishes"]["LENGTH"] and found["finishes"]["CANCELLED"]
    before, warm, end = found["stages"]
    assert before["free_blocks"] == warm["free_blocks"] == end["free_blocks"] == found["blocks"]
    assert warm["threads"] == end["threads"]


def test_idle(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.idle", "--seconds", "1", "--threads", "1", "--json", str(out))
    used = {r["process"]: r["after_work_cpu_s"] for r in json.loads(out.read_text())["rows"]}
    assert len(used) == 6 and "gateway" in used
    assert all(0 <= value < 5 for value in used.values())


def test_embedding_pairs(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    words = {"a": (1.0, 0.0), "paris": (0.0, 1.0), "dog": (1.0, 1.0), "big": (1.0, 0.2)}
    words |= dict.fromkeys("the boy it is because meeting use no shakespeare".split(), (0.5, 0.4))
    more = "rain rains due they hamlet london large photosynthesis respiration marlowe sort yes"
    words |= dict.fromkeys(more.split(), (0.4, 0.5))
    folder = write_embedding_model(tmp_path / "model", {**words, "plants": (0.3, 0.9)})
    run("tests.bench.embedding_pairs", str(folder), "--json", str(out))
    pairs = json.loads(out.read_text())["pairs"]
    assert [sum(p["same"] == same for p in pairs) for same in (True, False)] == [12, 12]
    assert all(-1.001 <= pair["cosine"] <= 1.001 for pair in pairs)
    cat = next(p["cosine"] for p in pairs if p["one"] == "a dog" and p["other"] == "a cat")
    assert 0 < cat < 1


def test_mesh_tax(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run(
        "tests.bench.mesh_tax", str(MINI), "--agents", "1,2", "--rounds", "1", "--prompt", "60",
        "--tokens", "6", "--threads", "1", "--json", str(out),
    )  # fmt: skip
    for row in json.loads(out.read_text())["rows"]:
        (only,) = row["runs"]
        assert only["mesh"]["tokens"] == only["engine"]["tokens"] == 6 * row["agents"]
        assert 0 < only["mesh"]["first_token_s"] <= only["mesh"]["total_s"]


def test_kill_latency(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run(
        "tests.bench.kill_latency", str(MINI), "--agents", "3", "--questions", "2", "--tokens",
        "40", "--threads", "1", "--json", str(out),
    )  # fmt: skip
    for only in json.loads(out.read_text())["runs"]:
        assert len(only["late_tokens"]) == len(only["late_s"]) <= 2
        assert all(count >= 0 for count in only["late_tokens"])
        assert all(seconds >= 0 for seconds in only["late_s"])


def test_checker(tmp_path: Path) -> None:
    for package in ("easy_vqa", "sklearn", "font_caladea", "fontTools"):
        pytest.importorskip(package, reason="see services/agent-decoder/training/README.md")
    out = tmp_path / "rows.json"
    run("tests.bench.checker", "--cases", "2", "--json", str(out))
    found = json.loads(out.read_text())
    right, wrong, every = (found["summary"][n] for n in ("right drafts", "wrong drafts", "all"))
    assert right["n"] + wrong["n"] == every["n"] == sum(found["scores"].values()) >= 4
    assert right["judged_rightly"] + wrong["judged_rightly"] == every["judged_rightly"]


def test_synthesis_ahead(tmp_path: Path) -> None:
    config = config_of("llama", max_position_embeddings=4096)
    model, out = tmp_path / "chat", tmp_path / "rows.json"
    write_tokenizer_files(write_checkpoint(model, config, random_weights(config)))
    run(
        "tests.bench.synthesis_ahead", str(model), "--agents", "3", "--questions", "1", "--tokens",
        "60", "--threads", "1", "--json", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    (only,) = found["runs"]
    assert only["same_answer"] and only["after"]["prepared"] == 0
    assert only["ahead"]["prompt"] == only["after"]["prompt"] > only["after"]["cached"]
    assert only["ahead"]["tokens"] == only["after"]["tokens"] > 0


def test_deepconf_recorded(tmp_path: Path) -> None:
    config = config_of("llama", max_position_embeddings=4096)
    model, out = tmp_path / "chat", tmp_path / "rows.json"
    write_tokenizer_files(write_checkpoint(model, config, random_weights(config)))
    run(
        "tests.bench.deepconf_recorded", str(model), "--agents", "8", "--questions", "2",
        "--tokens", "80", "--json", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())["summary"]
    assert found["judged"] == found["agents"] - found["warm_up"] == found["agree"] == 8
    assert found["threshold_differs"] == found["winner_differs"] == 0


def test_limits_held(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.limits_held", "--questions", "6", "--json", str(out))
    found = json.loads(out.read_text())
    assert found["summary"]["questions"] == len(found["runs"]) == 6
    assert found["summary"]["most_overshoot_tokens"] == 0


def test_fair_queue(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run(
        "tests.bench.fair_queue", "--seconds", "5", "--queues", "1000", "--tokens", "8",
        "--clients", "8", "--agents", "2", "--overload", "2", "--json", str(out),
    )  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    assert set(row["fairness"]["tokens"]) == {"small-1", "small-2", "large-1", "large-2"}
    assert 0.25 <= row["fairness"]["jain"] <= 1
    assert row["peak"]["outcomes"]["answer"] > 0


def test_shared_core(tmp_path: Path) -> None:
    model, out = write_tiny_model(tmp_path), tmp_path / "rows.json"
    run(
        "tests.bench.shared_core", str(model), "--engine", "cogitate:bfloat16", "--agents", "2",
        "--rounds", "1", "--prompt", "20", "--tokens", "200", "--rate", "500", "--json", str(out),
    )  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    (only,) = row["runs"]
    assert only["load"]["sent"] == only["load"]["echoed"] > 0
    assert 0 < row["share_of_cores"] < 1


def test_gang_latency(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.gang_latency", "--rounds", "1", "--agents", "1,2", "--json", str(out))
    assert [row["agents"] for row in json.loads(out.read_text())["rows"]] == [1, 2]


def test_journal_cost(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.journal_cost", "--rounds", "1", "--agents", "2", "--json", str(out))
    rows = json.loads(out.read_text())["rows"]
    nats = ["nats"] if shutil.which("nats-server") else []
    assert [row["journal"] for row in rows] == ["none", "memory", "sqlite", "fsync", *nats]
    assert all(row["tokens_per_s"] > 0 for row in rows)
    assert [row["bytes_per_token"] > 0 for row in rows[:4]] == [False, False, True, True]


def test_gateway_http(tmp_path: Path) -> None:
    out = tmp_path / "gateway.json"
    run(
        "tests.bench.gateway_http", "--rounds", "1", "--tokens", "160", "--streams", "8",
        "--litellm", "none", "--json", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert {row["turn"] for row in found["rows"]} == {
        f"{way}, {agents}" for way in ("gRPC", "SSE") for agents in ("one agent", "eight agents")
    }
    assert all(row["tokens"] >= 159 for row in found["rows"])
    assert found["idle"]["streams"] == 8


@needs_chromium
def test_page(tmp_path: Path) -> None:
    out = tmp_path / "page.json"
    run(
        "tests.bench.page", "--loads", "1", "--rounds", "1", "--agents", "4", "--tokens", "100",
        "--json", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["loads"][0]["bytes"] > 50_000
    assert found["streams"][0]["tokens"] == 400 and found["streams"][0]["frames_per_s"] > 0


def test_gateway_tax(tmp_path: Path) -> None:
    out = tmp_path / "tax.json"
    run(
        "tests.bench.gateway_tax", "services/agent-decoder/cogitate/models/mini", "--rounds", "1",
        "--tokens", "8", "--agents", "2", "--json", str(out),
    )  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    assert row["gRPC"]["tokens"] == row["HTTP"]["tokens"] > 0


def test_envoy_tax(tmp_path: Path) -> None:
    envoy_binary()  # skips
    out = tmp_path / "tax.json"
    run(
        "tests.bench.envoy_tax", "--starts", "10", "--rounds", "1", "--tokens", "8", "--agents",
        "2", "--json", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["starts"]["direct"]["count"] == found["starts"]["Envoy"]["count"] == 10
    (row,) = found["rows"]
    assert row["direct"]["tokens"] == row["Envoy"]["tokens"] > 0


def test_gpu_offers(tmp_path: Path) -> None:
    table, out = tmp_path / "offers.csv", tmp_path / "rows.json"
    table.write_text(
        "provider,region,accelerator,accelerators,vram_gib_per_accelerator,price_usd_per_hour,"
        "spot_price_usd_per_hour,instance_type\n"
        "a,r,H100,1,80,3.0,1.5,x\nb,r,H100,1,80,5.0,,x\na,r,H100,8,80,20.0,,x\na,r,L40S,1,48,1.0,,x\n"
    )
    run("tests.bench.gpu_offers", str(table), "--json", str(out))
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["card"], row["offers"], row["providers"]) == ("H100", 2, 2)
    assert (row["least"], row["median"], row["spot_median"], row["spot_off"]) == (
        3.0,
        4.0,
        1.5,
        0.5,
    )
    expected = 4.0 * 1e6 / row["tokens_per_s"] / 3600
    assert abs(row["usd_per_million"] - expected) < 0.01


def test_cache_timing(tmp_path: Path) -> None:
    out = tmp_path / "probes.json"
    run("tests.bench.cache_timing", "--probes", "2", "--json", str(out))
    told = json.loads(out.read_text())
    assert len(told["rows"]) == 2
    for row in told["rows"]:
        assert row["unseen"][1] == row["known"][1], "another tenant's cache was told"
        assert row["own"][1] > row["known"][1], "the control must find its own"


def test_stalled_reader(tmp_path: Path) -> None:
    out = tmp_path / "runs.json"
    run("tests.bench.stalled_reader", "--seconds", "2", "--agents", "2", "--json", str(out))
    runs = json.loads(out.read_text())["runs"]
    assert [one["stalled"] for one in runs] == [0, 1]
    assert all(one["tokens_per_s"] > 0 for one in runs)


def test_telemetry_overhead(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run(
        "tests.bench.telemetry_overhead", "--rounds", "1", "--gangs", "1", "--agents", "2",
        "--tokens", "8", "--json", str(out),
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert [row["side"] for row in rows] == ["bare", "off", "on"]
    assert all(row["wall_s"] > 0 and row["cpu_ratio"] > 0 for row in rows)


@pytest.mark.skipif(bool(missing()), reason=f"no sandbox here: {missing()}")
def test_python_tool(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.python_tool", "--calls", "2", "--pause-s", "0.05", "--json", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [row["side"] for row in rows] == ["calculator", "warm", "busy", "cold"]
    assert all(len(row["runs"]) == 2 and 0 < row["p50_ms"] <= row["p95_ms"] for row in rows)


@pytest.mark.skipif(bool(missing()), reason=f"no sandbox here: {missing()}")
def test_tool_release(tmp_path: Path) -> None:
    out = tmp_path / "runs.json"
    run("tests.bench.tool_release", "--questions", "1", "--agents", "3", "--json", str(out))
    [one] = json.loads(out.read_text())["runs"]
    assert one["processes"] >= 2
    assert one["gone_ms"] > 0


def test_router_place(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    run("tests.bench.router_place", "--endpoints", "60", "--count", "3", "--json", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 12 and all(row["wall_p99_ms"] > 0 for row in rows)


def test_picker_tax(tmp_path: Path) -> None:
    envoy_binary()  # skips
    out = tmp_path / "rows.json"
    run(
        "tests.bench.picker_tax", "--endpoints", "4", "--count", "3", "--warm-up", "2", "--json",
        str(out),
    )  # fmt: skip
    [row] = json.loads(out.read_text())["rows"]
    assert row["Envoy and picker"]["count"] == 3 and row["direct"]["p50_ms"] > 0
    assert row["router_cpu_ms"] > 0
