SUMMARY = "Image of a Hyperion device, for development"
DESCRIPTION = "hyperion-image with ssh, a root account without a password and tools to look inside. \
Never for a device that others can reach."
HOMEPAGE = "https://hyperion.example"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

require hyperion-image.inc

# nooelint: oelint.var.badimagefeature
IMAGE_FEATURES += "allow-empty-password allow-root-login empty-root-password ssh-server-openssh"

CORE_IMAGE_EXTRA_INSTALL += "\
    cri-tools \
    curl \
    htop \
    iproute2 \
    strace \
    tcpdump \
"
