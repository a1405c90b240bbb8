import pytest
from small_vae import CONFIGS, TINY_8, make_vae


@pytest.fixture(scope="module", params=[4, 8])
def vae(request):
    return make_vae(CONFIGS[request.param])


@pytest.fixture(scope="module")
def vae8():
    return make_vae(TINY_8)
