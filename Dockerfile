# The service in a container: no embedded PostgreSQL, no compiler, not root.
#
#     docker build --tag heartbeat .
#     docker run --rm heartbeat --help
#
# Your flows are a layer on top:
#
#     FROM heartbeat
#     COPY flows.py .
#     ENV HEARTBEAT_FLOWS=flows

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY heartbeat heartbeat
COPY sql sql
COPY migrations migrations
# A virtual environment, because it can be copied as one folder: pip's caches and the sources stay behind.
RUN python -m venv /opt/heartbeat && /opt/heartbeat/bin/pip install --no-cache-dir .

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin heartbeat
COPY --from=build /opt/heartbeat /opt/heartbeat
# Log lines leave at once; flows are imported from the working directory, where nothing is written.
ENV PATH=/opt/heartbeat/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app
WORKDIR /app
USER 10001
EXPOSE 8000
# The exec form: the signal that stops the container reaches the program, which then drains.
ENTRYPOINT ["heartbeat"]
CMD ["serve", "--host", "0.0.0.0"]
