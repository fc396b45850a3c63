"""Kill `instructlit iterate` again and again, and compare what it ends with to a run that was never killed.

    python tests/iterate_kill.py FOLDER [--rounds 2] [--kills 8] [--seed 0]

FOLDER is that of a finished `instructlit quickstart` (its `data` and `models/sft` are enough); two runs, `whole` and
`killed`, are made in it. A kill is SIGKILL, to the command alone or to it and the stage it runs, after a time drawn up
to that of the longest stage. One line says what was found; the status is 0 where all is the same. It takes some minutes
and is no part of the suite, whose tests of the same loop have a small program in the place of the stages.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from instructlit.data.rows import file_hash
from instructlit.models.lineage import weights_digest

SMALL = {
    "sft": "models/sft",
    "prompts": ["data/prompts_reward.jsonl"],
    "demonstrations": ["data/demonstrations.jsonl"],
    "ppo_prompts": ["data/prompts_ppo.jsonl"],
    "ppo_validation": ["data/prompts_validation.jsonl"],
    "label": "world rank --world 1",
    "reward": ["configs/quickstart/reward.yaml", "configs/quickstart/trial.yaml"],
    "ppo": ["configs/quickstart/ppo.yaml", "configs/quickstart/trial.yaml"],
    "policy_folder": "models/ppo-ema",
    "limit": 60,
    "completions": [4],
    "max_new_tokens": 16,
    "batch_size": 16,
    "contest": 30,
    "stop": "never",
    "validation_fraction": 0.2,
}


def main() -> int:
    """Both runs and the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, default in (("rounds", 2), ("kills", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    os.chdir(given.folder)
    Path("small.yaml").write_text(yaml.safe_dump(SMALL | {"rounds": given.rounds}))
    longest = run_whole("whole")
    struck = run_killed("killed", given.kills, longest, random.Random(given.seed))
    different = [name for name, value in results("whole").items() if results("killed").get(name) != value]
    found = {"kills": len(struck), "at": struck, "compared": len(results("whole")), "different": different}
    print(json.dumps(found))
    return 1 if different or set(results("whole")) != set(results("killed")) else 0


def started(output: str) -> subprocess.Popen[str]:
    """The command, in a session of its own."""
    words = [sys.executable, "-m", "instructlit", "iterate", "--config", "small.yaml", "--output", output]
    log = open(f"{output}.log", "a")  # noqa: SIM115 - the process has it as long as it lives
    return subprocess.Popen(words, stdout=log, stderr=log, text=True, start_new_session=True)


def run_whole(output: str) -> float:
    """Runs to the end; the seconds of the longest stage."""
    if started(output).wait() != 0:
        sys.exit(f"{output} failed: {Path(f'{output}.log').read_text()[-2000:]}")
    stamps = [json.loads(path.read_text()) for path in Path(output).glob("rounds/*/stamps/*.json")]
    return max(stamp["seconds"] for stamp in stamps)


def run_killed(output: str, kills: int, longest: float, rng: random.Random) -> list[str]:
    """Kills and starts again, then lets it end; the stage at work at each kill."""
    struck: list[str] = []
    while True:
        process = started(output)
        until = time.monotonic() + rng.uniform(0.1, 1.0) * longest if len(struck) < kills else None
        while process.poll() is None and (until is None or time.monotonic() < until):
            time.sleep(0.05)
        if process.poll() is None:
            if rng.random() < 0.5:
                os.kill(process.pid, signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            stages = re.findall(r"^\[\d+/\d+\] (\S+):", Path(f"{output}.log").read_text(), re.M)
            struck.append(stages[-1] if stages else "start")
        elif process.returncode == 0:
            return struck
        elif "another run" not in Path(f"{output}.log").read_text()[-500:]:
            sys.exit(f"{output} failed: {Path(f'{output}.log').read_text()[-2000:]}")
        else:
            time.sleep(1.0)  # the stage of the command that was killed alone is ending


def results(output: str) -> dict[str, str | None]:
    """All that a run ends with, by name: hashes of files and of weights."""
    found: dict[str, str | None] = {}
    for pattern in ("tasks*.jsonl", "labels.jsonl", "data/*.jsonl", "contest/*.jsonl", "round.json"):
        found |= {
            str(path.relative_to(output)): file_hash(str(path)) for path in Path(output).glob(f"rounds/*/{pattern}")
        }
    models = Path(output).glob("rounds/*/models/*/")
    return found | {str(path.relative_to(output)): weights_digest(path) for path in models}


if __name__ == "__main__":
    sys.exit(main())
