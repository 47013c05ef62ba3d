SUMMARY = "Updates of a Hyperion device with SWUpdate"
DESCRIPTION = "Says what the device is and whose bundles it takes; brings the engine, and root's part \
of updates, which is the agent's."
HOMEPAGE = "https://hyperion.example"
SECTION = "admin"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = ""

S = "${UNPACKDIR}"

inherit features_check

REQUIRED_DISTRO_FEATURES = "systemd"
# Boards with two slots and nvbootctrl.
COMPATIBLE_MACHINE = "(tegra)"

# Certificate of the key that signs the fleet's bundles, a path on the machine that builds.
HYPERION_UPDATE_CERTIFICATE ??= ""

# Of the system, as bundles have it.
HYPERION_SYSTEM_VERSION ?= "${DISTRO_VERSION}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    if [ ! -f "${HYPERION_UPDATE_CERTIFICATE}" ]; then
        bbfatal "HYPERION_UPDATE_CERTIFICATE: name the certificate of the key that signs your bundles"
    fi
    install -D -m 0644 "${HYPERION_UPDATE_CERTIFICATE}" ${D}${datadir}/hyperion/update.pem
    install -d ${D}${nonarch_libdir}/hyperion
    printf '%s\n' machine=${MACHINE} version=${HYPERION_SYSTEM_VERSION} loader=tegra > ${D}${nonarch_libdir}/hyperion/update.conf
    chmod 0644 ${D}${nonarch_libdir}/hyperion/update.conf
}
do_install[file-checksums] += "${@'%s:True' % d.getVar('HYPERION_UPDATE_CERTIFICATE') if d.getVar('HYPERION_UPDATE_CERTIFICATE') else ''}"

PACKAGE_ARCH = "${MACHINE_ARCH}"

FILES:${PN} += "${nonarch_libdir}/hyperion"

RDEPENDS:${PN} = "hyperion-updater swupdate tegra-redundant-boot"
