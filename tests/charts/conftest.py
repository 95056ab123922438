"""A cluster for the chart: the stand-in always, a real API server where KUBEBUILDER_ASSETS has one."""

from collections.abc import Iterator

import pytest
from support.cluster import Cluster, new_namespace, stand_in
from support.real_kube import ASSETS, real_kube


@pytest.fixture(scope="session")
def real_server() -> Iterator[Cluster]:
    """One kube-apiserver and etcd for the whole session."""
    if ASSETS is None:
        pytest.skip("KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd")
    with real_kube(ASSETS) as server:
        yield server


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.kube)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace that holds nothing."""
    if request.param == "stand-in":
        with stand_in() as server:
            yield server
    else:
        yield new_namespace(request.getfixturevalue("real_server"))
