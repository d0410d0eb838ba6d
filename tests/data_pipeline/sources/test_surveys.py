"""What one process finds out about files is all that others need, whatever has come to the folder since."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.open_samples import open_samples
from data_pipeline.sources.corpus import Corpus, survey_sources
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.corpora import bytes_tokenizer, config, texts, write_jsonl, write_lines
from tests.data_pipeline.sources.test_source_kinds import CASES, Case, pairs


def placed(folder: Path, name: str) -> Case:
    folder.mkdir()
    case = CASES[name](folder)
    return case._replace(source={"paths": [f"{folder}/*"], **case.source})


@pytest.mark.parametrize("name", CASES)
def test_a_survey_stands_for_the_files(tmp_path: Path, name: str) -> None:
    case = placed(tmp_path / "texts", name)
    settings = config(case.source, span_bytes=700, lanes=1)
    surveys = pickle.loads(pickle.dumps(survey_sources(settings)))
    expected = Corpus.training(settings)
    [path] = (tmp_path / "texts").iterdir()
    shutil.copy(path, path.with_name(f"b{path.name}"))
    found = Corpus.training(settings, surveys)
    assert (found.digest, found.files, found.spans) == (expected.digest, expected.files, expected.spans)
    assert pairs(list(found.documents())) == case.pairs
    assert len(list(Corpus.training(settings).documents())) == 2 * len(case.pairs)


def test_a_machine_that_lacks_the_files_is_told_so(tmp_path: Path) -> None:
    settings = config(placed(tmp_path / "texts", "jsonl").source)
    surveys = survey_sources(settings)
    [path] = (tmp_path / "texts").iterdir()
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(UserError, match=r"data.sources\[0\].paths: .* is on rank 0's machine but not on this one"):
        Corpus.training(settings, surveys)
    path.unlink()
    with pytest.raises(UserError, match=r"data.sources\[0\].paths: .* is on rank 0's machine but not on this one"):
        Corpus.training(settings, surveys)


def test_finite_sets_of_several_sources_come_from_surveys_too(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / "jsonl", texts(30)), write_lines(tmp_path / "lines", texts(50))]
    settings = config(*sources, order="finite")
    tokenizer = load_tokenizer(bytes_tokenizer(tmp_path))
    made = []
    for cache, surveys in (("alone", None), ("told", survey_sources(settings))):
        samples = open_samples(settings, tokenizer, CausalObjective(), seed=1, cache=tmp_path / cache, surveys=surveys)
        made.append(samples.make(range(40)).digests)
    assert np.array_equal(*made)
    names = [sorted(path.name for path in (tmp_path / cache).iterdir()) for cache in ("alone", "told")]
    assert names[0] == names[1]
