"""cluster.yaml and the files of cluster/: what `make cluster` writes, valid for their launchers, and of one mind."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.main import get_command

from harness.cli import app

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
SETTINGS = yaml.safe_load((CLUSTER / "settings.yaml").read_text())


def _generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "tools/cluster/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KNOWN = _generator().values(SETTINGS)


def _yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def _job() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    return claim, job


def _pods() -> tuple[dict[str, Any], dict[str, Any]]:
    cluster = _job()[1]["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]


def test_the_files_are_what_the_settings_give() -> None:
    """Where this fails, a file was changed by hand, or the settings without `make cluster`."""
    for path, text in _generator().render(SETTINGS).items():
        assert path.read_text() == text, path.name


def test_other_settings_reach_every_file() -> None:
    """What a launcher needs is taken from the settings, and nothing of it stands in a template."""
    other = deepcopy(SETTINGS) | {"image": "example.org/other", "shared": "/elsewhere"}
    other["workers"] |= {"nodes": 7, "gpus": 2}
    other["environment"] = {k: v.replace("/shared", "/elsewhere") for k, v in SETTINGS["environment"].items()}
    files = {path.name: text for path, text in _generator().render(other).items()}
    assert set(files) == {"Dockerfile", "cluster.yaml", "local.yaml", "rayjob.yaml", "skypilot.yaml", "slurm.sbatch"}
    for name, text in files.items():
        assert "/shared" not in text, name
        assert ("example.org/other:" in text) or name == "slurm.sbatch", name
        assert "--num-gpus 14 " in text or name == "Dockerfile", name


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/local.yaml"])
def test_rays_launcher_takes_it(name: str) -> None:
    config = _yaml(name)
    jsonschema.validate(config, SCHEMA)
    ready = prepare_config(config)  # Ray's own steps before it asks a provider
    validate_config(ready)
    assert config["docker"]["image"] == KNOWN["image"]
    assert f"--volume {SETTINGS['shared']}:{SETTINGS['shared']}" in config["docker"]["run_options"]
    assert not [key for key in config if key.endswith("setup_commands")]  # some providers skip them: the image has all
    head = " ".join(config["head_start_ray_commands"])
    assert "--num-gpus=0" in head
    assert f"--port={KNOWN['port']}" in head
    assert f"$RAY_HEAD_IP:{KNOWN['port']}" in " ".join(config["worker_start_ray_commands"])


def test_rays_schema_would_refuse_a_slip() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_yaml("cluster.yaml") | {"max_worker": 3}, SCHEMA)


def test_in_the_cloud_the_head_takes_no_work_and_each_machine_mounts_the_shared_folder() -> None:
    config = _yaml("cluster.yaml")
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert gpu["resources"] == {"CPU": SETTINGS["workers"]["cpus"], "GPU": SETTINGS["workers"]["gpus"]}
    assert (gpu["min_workers"], gpu["max_workers"], config["max_workers"]) == (0, 4, 4)
    assert head["node_config"]["InstanceType"] != gpu["node_config"]["InstanceType"]
    for node in (head, gpu):
        boot = node["node_config"]["UserData"]
        assert boot.startswith("#cloud-config\n")
        device, folder, kind, *_ = yaml.safe_load(boot)["mounts"][0]
        assert (folder, kind) == (SETTINGS["shared"], "nfs4")
        assert device.startswith(SETTINGS["aws"]["file_system"])


def test_the_kubernetes_job_survives_its_submitter_and_its_cluster() -> None:
    claim, job = _job()
    assert (job["apiVersion"], job["kind"], claim["kind"]) == ("ray.io/v1", "RayJob", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    spec = job["spec"]
    assert spec["submissionMode"] == "HTTPMode"
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    # The fields of KubeRay's API that are used; one that it does not know would be dropped without a word.
    assert set(spec) <= {
        "submissionMode", "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }  # fmt: skip
    cluster = spec["rayClusterSpec"]
    assert set(cluster) <= {
        "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
    }  # fmt: skip
    assert cluster["rayVersion"] == KNOWN["ray"]
    head, worker = _pods()
    assert head["rayStartParams"]["num-gpus"] == head["rayStartParams"]["num-cpus"] == "0"
    assert (worker["minReplicas"], worker["maxReplicas"]) == (0, SETTINGS["workers"]["nodes"])
    for group in (head, worker):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == KNOWN["image"]
        assert {e["name"]: e["value"] for e in container["env"]} == SETTINGS["environment"]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": SETTINGS["shared"]}]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    gpus = worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == str(SETTINGS["workers"]["gpus"])
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_slurm_has_a_head_without_gpu_beside_the_gpu_nodes() -> None:
    text = (CLUSTER / "slurm.sbatch").read_text()
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sbatch")], check=True)
    options = re.findall(r"(?m)^#SBATCH (.+)$", text)
    cut = options.index("hetjob")
    head, gpu = (dict(o.split("=", 1) for o in part if "=" in o) for part in (options[:cut], options[cut + 1 :]))
    assert "--gres" not in head
    assert head["--nodes"] == "1"
    assert gpu["--gres"] == f"gpu:{SETTINGS['workers']['gpus']}"
    assert gpu["--nodes"] == str(SETTINGS["workers"]["nodes"])
    assert "--requeue" in options
    for key, value in SETTINGS["environment"].items():
        assert f"export {key}={value.replace(SETTINGS['shared'], '$shared')}" in text


def test_skypilots_task_keeps_the_store_in_a_bucket() -> None:
    task = _yaml("cluster/skypilot.yaml")
    assert set(task) <= {
        "name", "resources", "num_nodes", "envs", "secrets", "file_mounts", "setup", "run",
    }  # fmt: skip
    assert task["resources"]["image_id"] == f"docker:{KNOWN['image']}"
    assert task["num_nodes"] == SETTINGS["workers"]["nodes"]
    assert set(task["envs"]) == set(SETTINGS["environment"])
    assert task["envs"]["HARNESS_STORE"] == SETTINGS["skypilot"]["bucket"] + "/store"
    assert all(isinstance(value, str) for value in task["envs"].values())
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in task["setup"].splitlines():
        _parse(shlex.split(line)[1:])


def test_the_image_installs_the_pinned_set_and_the_wheel() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    for source in re.findall(r"(?m)^COPY (?!--from)(\S+)", text):
        assert (ROOT / source).exists(), source
    assert "pip install --no-cache-dir --require-hashes -r /tmp/cluster.txt" in text
    assert "pip install --no-cache-dir --no-deps /wheels/*.whl" in text
    assert dict(re.findall(r"(?m)^ENV (\w+)=(\S+)$", text)) == SETTINGS["environment"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv*", "runs", ".harness"} <= set(ignored)


def _parse(words: list[str]) -> None:
    """Have the command line read a command, and run nothing."""
    root = get_command(app)
    command = root.commands[words[0]]  # type: ignore[attr-defined]
    words = words[1:]
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("harness", words)


def test_every_launcher_runs_one_command_that_the_command_line_takes() -> None:
    command = KNOWN["command"]
    assert _job()[1]["spec"]["entrypoint"] == f"RAY_ADDRESS=auto {command}"
    for name in ("cluster.yaml", "cluster/local.yaml"):
        assert f"'RAY_ADDRESS=auto {command}'" in (ROOT / name).read_text()
    assert _yaml("cluster/skypilot.yaml")["run"].splitlines()[-1] == f"RAY_ADDRESS=$address {command}"
    assert f"set -- {command}\n" in (CLUSTER / "slurm.sbatch").read_text()
    program, *words = shlex.split(command)
    assert program == "harness"
    _parse(words)
    with pytest.raises(Exception, match="bnch"):
        _parse([w.replace("--bench", "--bnch") for w in words])
