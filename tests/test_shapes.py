import pickle

import pytest

from speech import corpora
from speech.features import Picture
from speech.loading import make_loader, prepare_forms
from speech.shapes import batch_bytes, dataset_bytes
from speech.shm_usage import PAGE_BYTES

FORMS = ["wav", "png", "packed", "on_device"]


def in_pages(tensors) -> int:
    return sum(-(-tensor.nbytes // PAGE_BYTES) * PAGE_BYTES for tensor in tensors)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 4, 5])
@pytest.mark.parametrize("freq_mask", [0, 4])
def test_batch_bytes_are_the_whole_pages_of_what_the_loader_yields(
    tone_trial, form: str, batch_size: int, freq_mask: int
) -> None:
    loader, features = (
        {"format": form, "batch_size": batch_size},
        {
            "kinds": ["log_mel", "mfcc"],
            "n_mels": 24,
        },
    )
    config = tone_trial(loader=loader, features=features, augment={"freq_mask": freq_mask})
    corpus = corpora.prepare_corpus(config.corpus)
    prepare_forms(config, corpus, print)
    for split in ("training", "validation"):
        batches = list(make_loader(config, corpus, split, 0)[0])
        assert {len(labels) for _, labels, *_ in batches} >= {batch_size}
        assert [batch_bytes(config, len(batch[1]), split == "training") for batch in batches] == [
            in_pages(batch) for batch in batches
        ]


@pytest.mark.parametrize(
    "features", [{"n_mels": 16}, {"n_mels": 40, "kinds": ["log_mel", "mfcc"], "window_ms": 50.0}]
)
def test_dataset_bytes_are_the_whole_pages_of_the_pictures_tensors(
    tone_trial, features: dict
) -> None:
    config = tone_trial(features=features)
    assert dataset_bytes(config) == in_pages(Picture(config.features).state_dict().values())


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_holds_tensors_where_its_workers_make_pictures(tone_trial, form: str) -> None:
    config = tone_trial(loader={"format": form})
    corpus = corpora.prepare_corpus(config.corpus)
    prepare_forms(config, corpus, print)
    dataset = make_loader(config, corpus, "training", 0)[0].dataset
    assert (
        (b"_rebuild_tensor" in pickle.dumps(dataset))
        == (form in ("wav", "packed"))
        == (dataset_bytes(config) > 0)
    )
