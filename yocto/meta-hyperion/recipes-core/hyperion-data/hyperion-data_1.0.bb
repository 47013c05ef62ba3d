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
"

S = "${UNPACKDIR}"

inherit systemd features_check

REQUIRED_DISTRO_FEATURES = "systemd"

# Names the machine's data partition.
PACKAGE_ARCH = "${MACHINE_ARCH}"

HYPERION_DATA_DEVICE ??= "LABEL=hyperion-data"
# Folders under /var/lib that are on the data partition, under /data/state, as hyperion-data-image makes
# it. Devices in the field do not have one that is added here later: the image that adds it has to
# make it first.
HYPERION_DATA_FOLDERS ?= "hyperion hyperion-enrol hyperion-update containerd"

def hyperion_data_unit(folder):
    return "var-lib-%s.mount" % folder.replace("-", "\\x2d")

SYSTEMD_SERVICE:${PN} = "data.mount ${@' '.join(hyperion_data_unit(f) for f in d.getVar('HYPERION_DATA_FOLDERS').split())}"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

def hyperion_data_node(device):
    """The name that udev gives to what mount(8) calls LABEL=… or PARTLABEL=…"""
    kind, _, value = device.partition("=")
    return f"/dev/disk/by-{kind.lower()}/{value}" if value else device

python do_install() {
    import os

    root = d.getVar("D")
    source = d.getVar("S")
    units = root + d.getVar("systemd_system_unitdir")
    state = os.path.join(root + d.getVar("localstatedir"), "lib")

    def unit(name, template, word, value):
        with open(os.path.join(source, template)) as f:
            text = f.read().replace(word, value)
        with open(os.path.join(units, name), "w") as f:
            f.write(text)

    bb.utils.mkdirhier(units)
    bb.utils.mkdirhier(os.path.join(root, "data"))
    unit("data.mount", "data.mount.in", "@DEVICE@", hyperion_data_node(d.getVar("HYPERION_DATA_DEVICE")))
    for folder in d.getVar("HYPERION_DATA_FOLDERS").split():
        bb.utils.mkdirhier(os.path.join(state, folder))
        unit(hyperion_data_unit(folder), "bind.mount.in", "@FOLDER@", folder)
}

FILES:${PN} += "/data ${systemd_system_unitdir}"
