"""A cluster for the chart: the stand-in always, a real API server where KUBEBUILDER_ASSETS has one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster, new_namespace, stand_in
from support.job_runner import running_jobs
from support.real_kube import ASSETS, real_kube


@pytest.fixture(scope="session")
def real_server() -> Iterator[Cluster]:
    """One kube-apiserver and etcd for the whole session."""
    if ASSETS is None:
        pytest.skip("KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd")
    with real_kube(ASSETS) as server:
        yield server


@pytest.fixture
def stand_in_alone() -> Iterator[Cluster]:
    """For what a real API server cannot show: who asked it what, and how it would be with another account."""
    with stand_in() as server:
        yield server


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.kube)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace that holds nothing."""
    if request.param == "stand-in":
        with stand_in() as server:
            yield server
    else:
        yield new_namespace(request.getfixturevalue("real_server"))


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[list[str]]:
    """What the Jobs of that namespace wrote, which are run here."""
    with running_jobs(cluster, tmp_path) as told:
        yield told
