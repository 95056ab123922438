import pytest

from gemline.demo.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    return build_tokenizer().to_str().encode()
