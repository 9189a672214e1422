"""Object stores for the tests of data sets and of tokenizing."""

import hashlib

import pytest
import store_servers


@pytest.fixture(scope="session")
def moto_port():
    """Return the port of an S3 server in memory."""
    with store_servers.moto() as port:
        yield port


@pytest.fixture(scope="session")
def azurite_port():
    """Return the port of a server of Azure's blobs in memory."""
    with store_servers.azurite() as port:
        yield port


@pytest.fixture
def make_store(monkeypatch, request):
    """Return a function that makes an empty bucket for this test, in a store of the given scheme, and returns its URL.

    Clients read the environment once, so all tests with stores use the same address.
    """

    def make(scheme, number=0):
        name = "b" + hashlib.sha256(f"{request.node.name} {number}".encode()).hexdigest()[:20]
        port = request.getfixturevalue("azurite_port" if scheme == "az" else "moto_port")
        if scheme == "az":
            store_servers.use_azure(monkeypatch, port)
            store_servers.make_container(port, name)
        else:
            use = store_servers.use_s3 if scheme == "s3" else store_servers.use_google
            use(monkeypatch, f"http://127.0.0.1:{port}")
            store_servers.make_bucket(port, name)
        return f"{scheme}://{name}"

    return make
