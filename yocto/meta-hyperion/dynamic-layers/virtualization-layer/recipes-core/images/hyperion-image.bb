SUMMARY = "Image of a Hyperion device"
DESCRIPTION = "Read-only root with the agent and containerd; no way to log in, no keys, no tokens. \
All devices of a fleet get the same bytes; what they are told apart by is on their data partition."
HOMEPAGE = "https://hyperion.example"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

require hyperion-image.inc
