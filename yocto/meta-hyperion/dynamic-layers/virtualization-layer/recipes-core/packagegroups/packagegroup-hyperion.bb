SUMMARY = "What makes an image a Hyperion device"
DESCRIPTION = "The agent and its first settings, containerd with the network of its containers, and \
the data partition; on a Jetson, NVIDIA's container toolkit and the tool of its boot slots."
HOMEPAGE = "https://hyperion.example"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

# Contents depend on the machine.
PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup features_check

REQUIRED_DISTRO_FEATURES = "systemd virtualization"

RDEPENDS:${PN} = " \
    ca-certificates \
    cni \
    hyperion-agent \
    hyperion-containers \
    hyperion-data \
    hyperion-enrol \
    iptables \
    virtual-containerd \
"

# The release of the board's software is told from a file that nothing else would bring.
RDEPENDS:${PN}:append:tegra = " \
    nv-tegra-release \
    nvidia-container-toolkit \
    tegra-redundant-boot \
"
