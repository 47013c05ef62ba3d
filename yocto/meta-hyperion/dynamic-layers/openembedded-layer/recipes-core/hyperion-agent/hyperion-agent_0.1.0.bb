SUMMARY = "Hyperion's agent, and what enrols a new device"
DESCRIPTION = "Runs the containers that a Hyperion fleet places on this device, measures it, and \
goes on with its site where the control plane can't be reached."
HOMEPAGE = "https://hyperion.example"
SECTION = "admin"
# The program has its crates linked into it; foca's files are MPL-2.0, as they are.
LICENSE = "Apache-2.0 & BSD-3-Clause & ISC & MIT & MPL-2.0 & Unicode-3.0 & Zlib"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

CVE_PRODUCT = "hyperion-agent"

# protoc makes the wire protocol's code.
DEPENDS = "protobuf-native"

# The repository that this layer is in, unless a mirror is named.
HYPERION_GIT ?= "git://${HYPERION_REPOSITORY};protocol=file;branch=main"
SRC_URI = "${HYPERION_GIT}"

require ${BPN}-source.inc
require ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates systemd useradd features_check

REQUIRED_DISTRO_FEATURES = "systemd"

# The workspace has many programs, and cargo's class installs each that it finds. The profile
# "device" is size before speed. The workspace asks for the Rust that it is developed with; what the
# agent is made of builds with this release's older one.
CARGO_BUILD_FLAGS += "-p hyperion-agent --ignore-rust-version"
BUILD_MODE = "--profile device"
BUILD_DIR = "device"

PACKAGES =+ "hyperion-enrol hyperion-updater"

# The numbers are part of the data partition's format: its files must stay the agent's own over
# updates of the root file system.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system --gid 861 hyperion"
USERADD_PARAM:${PN} = "--system --uid 861 --gid hyperion --groups video \
    --home-dir ${localstatedir}/lib/hyperion --no-create-home --shell ${base_sbindir}/nologin hyperion"

SYSTEMD_PACKAGES = "${PN} hyperion-enrol hyperion-updater"
SYSTEMD_SERVICE:${PN} = "hyperion-agent.service"
SYSTEMD_SERVICE:hyperion-enrol = "hyperion-enrol.service"
SYSTEMD_SERVICE:hyperion-updater = "hyperion-update-boot.service hyperion-update.path"

do_install:append() {
    install -D -m 0644 ${S}/agent/hyperion-agent.service ${D}${systemd_system_unitdir}/hyperion-agent.service
    install -D -m 0644 ${S}/images/first-boot/containerd.conf ${D}${systemd_system_unitdir}/containerd.service.d/hyperion.conf
    install -D -m 0600 ${S}/agent/agent.env ${D}${sysconfdir}/hyperion/agent.env

    install -D -m 0755 ${S}/images/first-boot/hyperion-enrol ${D}${libexecdir}/hyperion/hyperion-enrol
    install -D -m 0644 ${S}/images/first-boot/hyperion-enrol.service ${D}${systemd_system_unitdir}/hyperion-enrol.service
    install -D -m 0644 ${S}/images/first-boot/80-hyperion-enrol.rules ${D}${nonarch_base_libdir}/udev/rules.d/80-hyperion-enrol.rules
    install -d ${D}${sysconfdir}/default
    echo "HYPERION_ENROL_FLAGS=--hostname-from-serial" > ${D}${sysconfdir}/default/hyperion-enrol
    chmod 0644 ${D}${sysconfdir}/default/hyperion-enrol

    # Root's part of updates, and what starts an agent that was updated alone.
    for program in hyperion-agent-start hyperion-update; do
        install -D -m 0755 ${S}/images/update/$program ${D}${libexecdir}/hyperion/$program
    done
    for unit in hyperion-update.path hyperion-update.service hyperion-update-boot.service hyperion-update-trial.service; do
        install -D -m 0644 ${S}/images/update/$unit ${D}${systemd_system_unitdir}/$unit
    done

    # Mount points of the data partition, on a root that is never written.
    install -d -m 0700 ${D}${localstatedir}/lib/hyperion ${D}${localstatedir}/lib/hyperion-enrol
    install -d ${D}${localstatedir}/lib/hyperion-update
    chown hyperion:hyperion ${D}${localstatedir}/lib/hyperion
}

FILES:${PN} += "${systemd_system_unitdir}/containerd.service.d"
FILES:hyperion-enrol += "\
    ${libexecdir}/hyperion/hyperion-enrol \
    ${systemd_system_unitdir}/hyperion-enrol.service \
    ${nonarch_base_libdir}/udev/rules.d \
    ${sysconfdir}/default/hyperion-enrol \
    ${localstatedir}/lib/hyperion-enrol \
"
FILES:hyperion-updater += "\
    ${libexecdir}/hyperion/hyperion-update \
    ${systemd_system_unitdir}/hyperion-update.path \
    ${systemd_system_unitdir}/hyperion-update.service \
    ${systemd_system_unitdir}/hyperion-update-boot.service \
    ${systemd_system_unitdir}/hyperion-update-trial.service \
    ${localstatedir}/lib/hyperion-update \
"
CONFFILES:${PN} = "${sysconfdir}/hyperion/agent.env"
CONFFILES:hyperion-enrol = "${sysconfdir}/default/hyperion-enrol"

RDEPENDS:hyperion-enrol = "${PN} systemd udev"
RDEPENDS:hyperion-updater = "${PN} systemd util-linux-blockdev util-linux-flock"
RRECOMMENDS:${PN} = "hyperion-enrol"
