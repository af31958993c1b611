# chisep in a container: CPU, no root, no network at run time.
#   docker build -t chisep .
#   docker run --rm --network none --user "$(id -u):$(id -g)" -v /data:/data chisep run /data/bids /data/out
# For NVIDIA GPUs build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 and run with --gpus all.
FROM python:3.12-slim AS build
COPY . /src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist /src

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=build /dist /dist
RUN python -m venv /opt/chisep
RUN /opt/chisep/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" /dist/chisep-*.whl
RUN /opt/chisep/bin/chisep --version
ENV PATH=/opt/chisep/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib HOME=/tmp
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["chisep"]
CMD ["--help"]
