"""A tar is read to its very end or refused: damage and links leave no images out without a word."""

import io
import os
import re
import tarfile

import pytest
from test_sources import pack

from labelled_images.sources import TarSource
from training.errors import DataError
from training.tar_index import index_tar


@pytest.fixture
def packed(images, tmp_path):
    return pack(tmp_path / "train.tar", images / "train")


def header_offsets(path):
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def test_a_damaged_header_is_an_error_with_its_offset(packed):
    whole = bytearray(packed.read_bytes())
    offsets = header_offsets(packed)
    for number in (1, len(offsets) // 2, len(offsets) - 1):
        for byte in (0, 100, 130, 150, 257):  # name, mode, size, checksum, magic
            damaged = bytearray(whole)
            damaged[offsets[number] + byte] ^= 1
            packed.write_bytes(damaged)
            index_tar.cache_clear()
            with pytest.raises(DataError, match=rf"{re.escape(str(packed))} is damaged: at byte {offsets[number]} "):
                index_tar(str(packed))


def test_a_tar_without_its_end_is_cut_short(packed):
    last = header_offsets(packed)[-1]
    packed.write_bytes(packed.read_bytes()[:last])
    with pytest.raises(DataError, match=f"is cut short: it stops at byte {last} without the zeros that end a tar"):
        index_tar(str(packed))


def test_a_lone_block_of_zeros_ends_a_tar(packed):
    members = index_tar(str(packed))
    packed.write_bytes(packed.read_bytes().rstrip(b"\0") + bytes(1024))
    index_tar.cache_clear()
    assert index_tar(str(packed)) == members


def test_two_tars_in_one_file_are_refused(images, packed):
    end = len(packed.read_bytes().rstrip(b"\0"))
    packed.write_bytes(packed.read_bytes() * 2)
    with pytest.raises(DataError, match=r"the tar ends at byte (\d+), but other data follows") as error:
        index_tar(str(packed))
    assert end <= int(re.search(r"at byte (\d+)", str(error.value))[1]) <= end + 512


def test_damage_inside_a_long_name_is_an_error(own_images, tmp_path):
    red = own_images / "train" / "red"
    (red / "00.png").rename(red / f"{'n' * 120}.png")
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("blue", "red"):
            tar.add(own_images / "train" / name, name)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"././@LongLink") + 512 + 512] ^= 1  # the header that the name belongs to
    path.write_bytes(whole)
    with pytest.raises(DataError, match="cannot be read as an uncompressed tar"):
        index_tar(str(path))


def add_link(tar, name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, str(target)
    tar.addfile(info)


@pytest.mark.parametrize("name", ["violet", "red/more"])
@pytest.mark.parametrize("target", ["blue", "../elsewhere", "/data/violet"])
def test_a_folder_that_is_a_link_is_refused_by_name(packed, name, target):
    target = os.path.relpath(target, os.path.dirname(name)) if target == "blue" else target
    with tarfile.open(packed, "a") as tar:
        add_link(tar, name, target)
    with pytest.raises(DataError, match=f"{name} is a link; make the tar with --dereference --hard-dereference"):
        index_tar(str(packed))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_image_that_is_a_link_is_refused_and_other_links_are_not(packed, kind):
    with tarfile.open(packed, "a") as tar:
        tar.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
        add_link(tar, "readme", "notes.txt", kind)
        add_link(tar, ".hidden.png", "nowhere", kind)
    assert len(TarSource(str(packed)).labels) == 24
    with tarfile.open(packed, "a") as tar:
        add_link(tar, "red/08.png", "07.png" if kind == tarfile.SYMTYPE else "red/07.png", kind)
    index_tar.cache_clear()
    with pytest.raises(DataError, match=r"red/08.png is a link"):
        index_tar(str(packed))


def test_of_two_members_with_one_name_the_last_counts(images, packed):
    with tarfile.open(packed, "a") as tar:
        tar.add(images / "val" / "blue" / "00.png", "red/03.png")
    source, blue = TarSource(str(packed)), TarSource(str(pack(packed.with_name("val.tar"), images / "val")))
    assert len(source.labels) == 24
    place = [member.name for member in source.members].index("red/03.png")
    assert source.read(place).tobytes() == blue.read(0).tobytes()


def test_members_with_holes_are_refused(packed):
    with tarfile.open(packed, "a") as tar:
        info = tarfile.TarInfo("red/08.png")
        info.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(info)
    with pytest.raises(DataError, match=r"red/08.png is stored with holes; make the tar without --sparse"):
        index_tar(str(packed))
