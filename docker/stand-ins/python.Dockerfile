# Stands in for `python:…-slim` as docker/Dockerfile builds on it, and carries the wheels that it installs.
FROM keyman-stand-in/build-base
COPY wheels /wheels
