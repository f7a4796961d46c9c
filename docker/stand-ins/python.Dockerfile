# Stands in for `python:…-slim`, on which docker/Dockerfile builds, and contains the wheels that it installs.
FROM keyman-stand-in/build-base
COPY wheels /wheels
