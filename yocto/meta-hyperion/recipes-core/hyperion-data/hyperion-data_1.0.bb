SUMMARY = "Mounts of the data partition of a Hyperion device"
DESCRIPTION = "What must outlive an update of the root file system: the agent's identity and store, \
what enrolled the device, and containerd's images and containers."
HOMEPAGE = "https://hyperion.example"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = " \
    file://bind.mount.in \
    file://data.mount.in \
    file://hyperion-data.conf \
"

S = "${UNPACKDIR}"

inherit systemd features_check

REQUIRED_DISTRO_FEATURES = "systemd"

# Names the machine's data partition.
PACKAGE_ARCH = "${MACHINE_ARCH}"

HYPERION_DATA_DEVICE ??= "LABEL=hyperion-data"
# Folders under /var/lib that are on the data partition, under /data/state.
HYPERION_DATA_FOLDERS ?= "hyperion hyperion-enrol containerd"

def hyperion_data_unit(folder):
    return "var-lib-%s.mount" % folder.replace("-", "\\x2d")

SYSTEMD_SERVICE:${PN} = "data.mount ${@' '.join(hyperion_data_unit(f) for f in d.getVar('HYPERION_DATA_FOLDERS').split())}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

python do_install() {
    import os

    def write(name, text):
        with open(os.path.join(units, name), "w") as f:
            f.write(text)

    def read(name):
        with open(os.path.join(d.getVar("S"), name)) as f:
            return f.read()

    root = d.getVar("D")
    units = root + d.getVar("systemd_system_unitdir")
    state = os.path.join(root + d.getVar("localstatedir"), "lib")
    tmpfiles = root + d.getVar("nonarch_libdir") + "/tmpfiles.d"
    for folder in (units, tmpfiles, root + "/data"):
        bb.utils.mkdirhier(folder)
    write("data.mount", read("data.mount.in").replace("@DEVICE@", d.getVar("HYPERION_DATA_DEVICE")))
    bind = read("bind.mount.in")
    for folder in d.getVar("HYPERION_DATA_FOLDERS").split():
        bb.utils.mkdirhier(os.path.join(state, folder))
        write(hyperion_data_unit(folder), bind.replace("@FOLDER@", folder))
    bb.utils.copyfile(os.path.join(d.getVar("S"), "hyperion-data.conf"), tmpfiles + "/hyperion-data.conf")
}

FILES:${PN} += "/data ${nonarch_libdir}/tmpfiles.d ${systemd_system_unitdir}"
