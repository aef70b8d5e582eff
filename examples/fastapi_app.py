"""raftkv in FastAPI: one client for the application's life. Needs a cluster: `raftkv up`.

pip install fastapi uvicorn
uvicorn examples.fastapi_app:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

import raftkv
from raftkv import codecs

ENDPOINTS = os.environ.get("RAFTKV_ENDPOINTS", "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403")
User = dict[str, str]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # In the loop that serves, and in its own process: servers with several workers run this in each of them.
    async with raftkv.AsyncClient(ENDPOINTS, timeout=10.0, codec=codecs.json_of(User)) as users:
        app.state.users = users
        yield


app = FastAPI(lifespan=lifespan)


def client(request: Request) -> raftkv.AsyncClient[User, User]:
    users: raftkv.AsyncClient[User, User] = request.app.state.users
    return users


Users = Annotated[raftkv.AsyncClient[User, User], Depends(client)]


@app.exception_handler(raftkv.RaftKVError)
async def failed(_request: Request, error: raftkv.RaftKVError) -> JSONResponse:
    """A client may send again what surely did not take effect; of the rest it has to look first."""
    said = {"error": type(error).__name__, "applied": "no" if isinstance(error, raftkv.NotApplied) else "unknown"}
    return JSONResponse(said, 503 if isinstance(error, raftkv.Unavailable | raftkv.Overloaded) else 500)


@app.get("/users/{name}")
async def read(name: str, users: Users) -> User:
    record = await users.get(f"user:{name}")
    if record is None:
        raise HTTPException(404)
    return record.value


@app.put("/users/{name}")
async def write(name: str, user: User, users: Users) -> int:
    """The record's version."""
    return (await users.put(f"user:{name}", user)).version


@app.post("/users/{name}/visits")
async def visit(name: str, users: Users) -> int:
    return await users.incr(f"visits:{name}", ttl=3600)


@app.post("/report")
async def report(users: Users) -> str:
    """One at a time, of all processes on all machines."""
    lock = users.lock("report", ttl=10)
    if not await lock.acquire(timeout=0):
        raise HTTPException(409, "somebody else is at it")
    async with lock:
        return f"{await users.count(prefix='user:')} users, token {lock.token}"
