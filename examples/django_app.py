"""raftkv in Django: one client for each process, made by its first request. Needs a cluster: `raftkv up`.

    pip install django
    python examples/django_app.py runserver

A server may fork workers after it has loaded this module, so no client is made at its import.
"""

import atexit
import os
import sys
import threading
from functools import cache

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponseBase, HttpResponseNotAllowed, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

import raftkv
from raftkv import codecs

ENDPOINTS = os.environ.get("RAFTKV_ENDPOINTS", "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403")


_making = threading.Lock()


@cache
def _made() -> raftkv.Client[str, str]:
    made = raftkv.Client(ENDPOINTS, timeout=10.0, codec=codecs.STR)
    atexit.register(made.close)
    return made


def client() -> raftkv.Client[str, str]:
    """For all threads of this process."""
    with _making:
        return _made()


def user(request: HttpRequest, name: str) -> JsonResponse:
    if request.method == "PUT":
        written = client().put(f"user:{name}", request.body.decode())
        return JsonResponse({"version": written.version})
    record = client().get(f"user:{name}")
    if record is None:
        return JsonResponse({}, status=404)
    return JsonResponse({"value": record.value, "version": record.version})


def report(request: HttpRequest) -> HttpResponseBase:
    """One at a time, of all processes on all machines."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    lock = client().lock("report", ttl=10)
    if not lock.acquire(timeout=0):
        return JsonResponse({"error": "somebody else is at it"}, status=409)
    with lock:
        count = client().count(prefix="user:")
        lock.check()
        return JsonResponse({"users": count, "token": lock.token})


urlpatterns = [path("users/<str:name>", csrf_exempt(user)), path("report", csrf_exempt(report))]

if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY=os.environ.get("SECRET_KEY", "example"))
    django.setup()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
