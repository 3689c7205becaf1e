#!/usr/bin/env python3
"""An application of Django in one file: Roomcast lets in whoever has logged in to it.

    pip install django
    ROOMCAST_SECRET=… SESSION_SECRET=… DATABASE=app.sqlite3 ./django_app.py [PORT]
"""

import hashlib
import hmac
import json
import os
import sys
import time

import django
from django.conf import settings
from django.contrib.auth import authenticate, login
from django.core.management import call_command
from django.http import HttpResponseForbidden, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

settings.configure(
    SECRET_KEY=os.environ["SESSION_SECRET"],
    # The host in the URL of the hook is one of them.
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ROOT_URLCONF=__name__,
)
SECRET = os.environ["ROOMCAST_SECRET"].encode()


@require_POST
def log_in(request):
    user = authenticate(request, username=request.POST["username"], password=request.POST["password"])
    if user is None:
        return HttpResponseForbidden()
    login(request, user)
    return JsonResponse({"user": user.username})


@csrf_exempt  # The signature proves where the request comes from.
@require_POST
def roomcast(request):
    if not is_genuine(SECRET, request.headers.get("Roomcast-Signature", ""), request.body):
        return HttpResponseForbidden()
    return JsonResponse(respond(json.loads(request.body), request.user), safe=False)


def respond(hook, user):
    # It may have logged out since it connected.
    if not user.is_authenticated:
        return [{"op": "refuse", "message": "log in first"}]
    if hook["type"] == "connect":
        return [
            {"op": "set_user", "user": str(user.pk)},
            {"op": "set_data", "data": {"name": user.username}},
        ]
    if hook["event"] == "whoami":
        return [{"op": "ack", "args": [user.username]}]
    return [{"op": "refuse", "message": "unknown event"}]


def is_genuine(secret, header, body):
    parts = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    sent, given = parts.get("t", ""), parts.get("v1", "")
    wanted = hmac.new(secret, sent.encode() + b"." + body, hashlib.sha256).hexdigest()
    # As bytes, because characters beyond ASCII cannot be compared. A signed time is a number.
    is_signed = hmac.compare_digest(wanted.encode(), given.encode())
    return is_signed and abs(time.time() - int(sent)) < 300


urlpatterns = [path("login", log_in), path("roomcast", roomcast)]

if __name__ == "__main__":
    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.auth.models import User

    if not User.objects.filter(username="ada").exists():
        User.objects.create_user("ada", password="lovelace")
    call_command("runserver", f"127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else 8000}", use_reloader=False)
