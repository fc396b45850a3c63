"""Everything follows from the seed, in any process; the tokenizer and the config load with plain transformers."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from instructlit.world import PREFIX, World, respectful, sample_spec
from instructlit.world.corpus import documents
from instructlit.world.facts import MISCONCEPTION_SHARE, RELATIONS, Facts
from instructlit.world.tokenizer import vocabulary, write_untrained

SCRIPT = """
import sys, random
from instructlit.world import World, Sizes, generate, rank_completions
world = World(11)
sizes = Sizes(corpus=200, corpus_heldout=20, demonstrations=40, demonstrations_validation=10, reward=40, ppo=40,
              validation=20, test=40, probes=10, corpus_tasks=10)
generate(world, sys.argv[1], sizes)
prompt = "list animals that live in the sea . answer :"
print(rank_completions(world, prompt, ["whale , crab .", "fox .", "seal ."], random.Random(5)))
"""


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    printed, digests = [], []
    for hash_seed in ("1", "4242"):
        folder = tmp_path / hash_seed
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(done.stdout)
        digests.append(digest(folder))
    assert printed[0] == printed[1]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 15


def test_seeds_differ_in_their_truth() -> None:
    one, two = Facts(1), Facts(2)
    assert one.truth != two.truth
    assert one.truth == Facts(1).truth


def test_misconceptions_are_a_fixed_share_and_false() -> None:
    facts = Facts(0)
    for relation in RELATIONS:
        myths, truth = facts.myth[relation.name], facts.truth[relation.name]
        assert len(myths) == round(MISCONCEPTION_SHARE * len(truth))
        assert all(truth[subject] != believed for subject, believed in myths.items())


def test_the_corpus_repeats_misconceptions_more_than_the_truth() -> None:
    facts = Facts(0)
    text = " ".join(documents(facts, random.Random(0), 8000))
    told = {"truth": 0, "myth": 0}
    for relation in RELATIONS:
        for subject, believed in facts.myth[relation.name].items():
            for name, value in (("truth", facts.truth[relation.name][subject]), ("myth", believed)):
                told[name] += text.count(relation.statements[0].format(s=subject, v=value))
    assert told["truth"] > 50
    assert 1.5 < told["myth"] / told["truth"] < 4


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    write_untrained(folder)
    return folder


def test_the_tokenizer_reads_and_writes_every_text(untrained: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(untrained))
    rng, world = random.Random(1), World(1)
    texts = list(documents(world.facts, rng, 300))
    for _ in range(500):
        prompt = sample_spec(rng).render()
        texts += [f"{PREFIX} {prompt} {world.ideal(prompt, rng)}", respectful(prompt)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token is None
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


def test_offsets_find_the_completion_even_where_no_space_stands_between(untrained: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(untrained))
    prompt, completion = "write an ad for bread . answer :", "buy our fresh bread ."
    joined = tokenizer(prompt + completion, return_offsets_mapping=True)
    spaced = tokenizer(f"{prompt} {completion}")
    assert joined["input_ids"] == spaced["input_ids"]
    starts = [start for start, _ in joined["offset_mapping"]]
    assert starts.index(len(prompt)) == len(prompt.split())
    assert [(prompt + completion)[a:b] for a, b in joined["offset_mapping"]] == f"{prompt} {completion}".split()


def test_the_config_is_a_tiny_llama_without_weights(untrained: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    expected = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in untrained.iterdir()} == expected
    config = AutoConfig.from_pretrained(str(untrained))
    assert config.vocab_size == len(vocabulary())
    assert (config.pad_token_id, config.eos_token_id) == (0, 1)
    model = AutoModelForCausalLM.from_config(config)
    assert 0.7e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    assert json.loads((untrained / "config.json").read_text())["model_type"] == "llama"
