//! A repository of packages inside the guest, which has no network: three packages in three versions, for real `apt` and `dpkg` to install, upgrade and remove.
//!
//! Between versions files stay, change, come and go; there are hard links, symlinks that turn, configuration files, and scripts that write. Made once,
//! in the image's root.

/// Where it lies: one folder for each release.
pub const FOLDER: &str = "/srv/repository";
/// The link that apt's list names; it points to the current release.
pub const CURRENT: &str = "/srv/repository/current";
/// What apt is told instead of the server's own lists.
pub const LIST: &str = "/srv/repository/list";
pub const PACKAGES: [&str; 3] = ["lab-one", "lab-two", "lab-three"];
pub const RELEASES: u32 = 3;

/// The script that makes it, as root in the guest's root.
pub fn script() -> String {
    let packages = PACKAGES.join(" ");
    format!("FOLDER={FOLDER} LIST={LIST} CURRENT={CURRENT} PACKAGES='{packages}' RELEASES={RELEASES}\n{SCRIPT}")
}

const SCRIPT: &str = r#"
mkdir -p $FOLDER
echo "deb [trusted=yes] file:$CURRENT ./" > $LIST
same=$(mktemp -d)
for number in $(seq 20); do head -c $((number * 700)) /dev/urandom > $same/same-$number; done
for release in $(seq $RELEASES); do
    mkdir -p $FOLDER/$release
    for name in $PACKAGES; do
        tree=$(mktemp -d); chmod 755 $tree; share=$tree/usr/share/$name
        mkdir -p $tree/DEBIAN $share/only-$release $tree/usr/bin $tree/etc/$name
        cp $same/* $share/
        for number in $(seq 20); do head -c $((number * 900)) /dev/urandom > $share/changed-$number; done
        for number in $(seq 5); do echo $release $number > $share/only-$release/file-$number; done
        ln -s changed-$release $share/current; ln $share/changed-1 $share/hard
        printf '#!/bin/sh\necho %s %s\n' $name $release > $tree/usr/bin/$name; chmod 755 $tree/usr/bin/$name
        echo "release = $release" > $tree/etc/$name/$name.conf; echo /etc/$name/$name.conf > $tree/DEBIAN/conffiles
        printf '#!/bin/sh\nset -e\nmkdir -p /var/lib/%s\necho configured %s >> /var/lib/%s/log\n' $name $release $name > $tree/DEBIAN/postinst
        printf '#!/bin/sh\nset -e\nif [ "$1" = purge ]; then rm -rf /var/lib/%s; fi\n' $name > $tree/DEBIAN/postrm
        chmod 755 $tree/DEBIAN/postinst $tree/DEBIAN/postrm
        depends=; [ $name = lab-one ] || depends='Depends: lab-one'
        { printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: lab <lab@localhost>\nSection: misc\nPriority: optional\n' $name $release
          [ -z "$depends" ] || echo "$depends"; printf 'Description: something to install\n'; } > $tree/DEBIAN/control
        package=$FOLDER/$release/$name.deb
        dpkg-deb --build --root-owner-group -Zgzip $tree $package >/dev/null
        { dpkg-deb --field $package; printf 'Filename: ./%s.deb\nSize: %s\nSHA256: %s\n\n' $name $(stat -c %s $package) $(sha256sum $package | cut -d' ' -f1); } >> $FOLDER/$release/Packages
        rm -rf $tree
    done
done
rm -rf $same
"#;
