SUMMARY = "containerd as the Hyperion agent wants it"
DESCRIPTION = "Configuration of containerd's CRI service and of the network of its containers."
HOMEPAGE = "https://hyperion.example"
SECTION = "admin"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = " \
    file://10-hyperion.conflist \
    file://config.toml.in \
"

S = "${UNPACKDIR}"

inherit features_check

# The runtime is the machine's.
PACKAGE_ARCH = "${MACHINE_ARCH}"

REQUIRED_DISTRO_FEATURES = "systemd virtualization"

# On a Jetson NVIDIA's runtime starts all containers, and gives the GPU to those that ask for it.
HYPERION_CONTAINER_RUNTIME ?= "runc"
HYPERION_CONTAINER_RUNTIME:tegra ?= "nvidia"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d ${D}${sysconfdir}/containerd
    sed -e 's,@RUNTIME@,${HYPERION_CONTAINER_RUNTIME},' -e 's,@CNI@,${libexecdir}/cni,' -e 's,@BINDIR@,${bindir},' \
        ${S}/config.toml.in > ${D}${sysconfdir}/containerd/config.toml
    chmod 0644 ${D}${sysconfdir}/containerd/config.toml
    install -D -m 0644 ${S}/10-hyperion.conflist ${D}${sysconfdir}/cni/net.d/10-hyperion.conflist
}

CONFFILES:${PN} = " \
    ${sysconfdir}/cni/net.d/10-hyperion.conflist \
    ${sysconfdir}/containerd/config.toml \
"

RDEPENDS:${PN} = "cni virtual-containerd"
