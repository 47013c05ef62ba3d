SUMMARY = "Updates of a Hyperion device with SWUpdate"
DESCRIPTION = "Tells SWUpdate which slot to write, whose bundles to take and for which board."
HOMEPAGE = "https://hyperion.example"
SECTION = "admin"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://20-hyperion"

S = "${UNPACKDIR}"

inherit features_check

REQUIRED_DISTRO_FEATURES = "systemd"
# Boards with two slots and nvbootctrl.
COMPATIBLE_MACHINE = "(tegra)"

# Certificate of the key that signs the fleet's bundles, a path on the machine that builds.
HYPERION_UPDATE_CERTIFICATE ??= ""

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    if [ ! -f "${HYPERION_UPDATE_CERTIFICATE}" ]; then
        bbfatal "HYPERION_UPDATE_CERTIFICATE: name the certificate of the key that signs your bundles"
    fi
    install -D -m 0644 "${HYPERION_UPDATE_CERTIFICATE}" ${D}${datadir}/hyperion/update.pem
    install -D -m 0644 ${S}/20-hyperion ${D}${libdir}/swupdate/conf.d/20-hyperion
    sed -i -e 's,@CERTIFICATE@,${datadir}/hyperion/update.pem,' ${D}${libdir}/swupdate/conf.d/20-hyperion
    install -d ${D}${sysconfdir}
    echo "${MACHINE} 1.0" > ${D}${sysconfdir}/hwrevision
    chmod 0644 ${D}${sysconfdir}/hwrevision
}
do_install[file-checksums] += "${@'%s:True' % d.getVar('HYPERION_UPDATE_CERTIFICATE') if d.getVar('HYPERION_UPDATE_CERTIFICATE') else ''}"

PACKAGE_ARCH = "${MACHINE_ARCH}"

RDEPENDS:${PN} = "swupdate swupdate-client tegra-redundant-boot"
