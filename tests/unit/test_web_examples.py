"""Guarantee: the examples of web frameworks do what they show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from raftkv.limits import MAX_KEY_BYTES
from tests.admin_world import World, world_of


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of(nodes=1, groups=2) as running:
        yield running


def test_fastapi(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx

    from examples import fastapi_app

    monkeypatch.setattr(fastapi_app, "ENDPOINTS", world.endpoints)

    async def main() -> None:
        transport = httpx.ASGITransport(fastapi_app.app)
        async with (
            fastapi_app.lifespan(fastapi_app.app),
            httpx.AsyncClient(transport=transport, base_url="http://example") as web,
        ):
            assert (await web.get("/users/ada")).status_code == 404
            assert (await web.put("/users/ada", json={"mail": "a@b"})).json() == 1
            assert (await web.get("/users/ada")).json() == {"mail": "a@b"}
            assert (await web.post("/users/ada/visits")).json() == 1
            answers = await asyncio.gather(*(web.post("/report") for _ in range(3)))
            assert {answer.status_code for answer in answers} <= {200, 409}
            assert any(answer.status_code == 200 and "1 users, token" in answer.text for answer in answers)
            assert (await web.get("/users/" + MAX_KEY_BYTES * "x")).json() == {"error": "TooLarge", "applied": "no"}

    asyncio.run(main())


def test_django(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.test import Client

    from examples import django_app

    monkeypatch.setattr(django_app, "ENDPOINTS", world.endpoints)
    web = Client()
    try:
        assert web.get("/users/eve").status_code == 404
        written = web.put("/users/eve", "admin", content_type="text/plain").json()
        assert web.get("/users/eve").json() == {"value": "admin", "version": written["version"]}
        assert web.get("/report").status_code == 405
        report = web.post("/report").json()
        assert report["users"] >= 1
        assert report["token"] > 0
        with django_app.client().lock("report"):
            assert web.post("/report").status_code == 409
    finally:
        django_app.client().close()
