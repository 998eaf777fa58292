"""What a corpus's folder may name."""

import json

import pytest

from keras_bnrnn.data.errors import CorpusError
from keras_bnrnn.data.speech.corpus import load_corpus


@pytest.mark.parametrize("what", ["split", "shard", "link"])
@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "sub/file", "..", "..\\elsewhere"])
def test_names_that_lead_out_of_the_folder_are_refused(tiny_corpus, tmp_path, what, name):
    document = json.loads((tiny_corpus / "corpus.json").read_text())
    if what == "split":
        document["splits"][name] = document["splits"].pop("dev")
    elif what == "shard":
        document["splits"]["dev"]["shards"][0]["file"] = name
    else:
        (tmp_path / document["splits"]["dev"]["shards"][0]["file"]).symlink_to(name)
    (tmp_path / "corpus.json").write_text(json.dumps(document))
    if (what, name) == ("link", "..\\elsewhere"):  # A file of this folder.
        assert load_corpus(tmp_path).splits
    else:
        with pytest.raises(CorpusError, match="does not name a file in this folder"):
            load_corpus(tmp_path)
