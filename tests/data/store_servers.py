"""Object stores for tests, on this machine: moto, and Azurite if it is installed.

obstore uses the XML interface of Google Cloud Storage. It equals that of S3 but for credentials and a few headers, so
moto serves both. Two emulators of Google's store lack parts of this interface: gcp-storage-emulator lacks HEAD, lists
and ETags, and fake-gcs-server lacks uploads.
"""

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time

import pytest

MOTO = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
moto = DomainDispatcherApplication(create_backend_app)
def application(environ, start_response):
    if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS"):  # Google's; moto expects Amazon's
        scope = "key/20260101/us-east-1/s3/aws4_request"
        environ["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=x"
    return moto(environ, start_response)
run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)
"""
AZURE_ACCOUNT = "devstoreaccount1"  # the account of every Azurite; its documentation gives the key
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(command, port):
    """Start a server, wait for its port, and end it."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionError:
                assert process.poll() is None
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def moto():
    """Yield the port of an S3 server in memory."""
    pytest.importorskip("moto.server")
    port = free_port()
    with serving([sys.executable, "-c", MOTO, str(port)], port):
        yield port


@contextlib.contextmanager
def azurite():
    """Yield the port of a server of Azure's blobs in memory."""
    if (program := shutil.which("azurite-blob")) is None:
        pytest.skip("azurite-blob is not installed: npm install --global azurite")
    port = free_port()
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    with serving([program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options], port):
        yield port


def use_s3(monkeypatch, address):
    values = {"ENDPOINT_URL": address, "ALLOW_HTTP": "true", "REGION": "us-east-1"}
    values |= {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def use_google(monkeypatch, address):
    account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps({**account, "private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def use_azure(monkeypatch, port):
    values = {"USE_EMULATOR": "true", "ACCOUNT_NAME": AZURE_ACCOUNT, "ACCOUNT_KEY": AZURE_KEY}
    for name, value in values.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def make_bucket(port, name):
    _put(port, f"/{name}", {})


def make_container(port, name):
    """Make a container. obstore has no such request, so this one is signed here with Azure's shared key."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": now, "x-ms-version": "2021-08-06"}
    signed = "PUT" + "\n" * 12 + "".join(f"{key}:{value}\n" for key, value in headers.items())
    signed += f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    digest = base64.b64encode(hmac.digest(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256)).decode()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{digest}"
    _put(port, f"/{AZURE_ACCOUNT}/{name}?restype=container", headers)


def _put(port, path, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", path, headers={**headers, "Content-Length": "0"})
    answer = connection.getresponse()
    assert answer.status in (200, 201), answer.read()
    connection.close()
