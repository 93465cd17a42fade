"""Prints one line for each message type of Ray and seed: its full name, a tab, and a filled message in base64.

Every field is filled, with values that the wrong type or number would not survive. Descriptors come from the
executables of the wheel, which also have those that the wheel has no Python module for.
"""

import base64
import importlib.util
import os
import random
import re
import sys

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

MAX_DEPTH = 4


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def file_descriptor(data, start):
    """Reads the descriptor that begins at `start`: its fields come in rising order, name first."""
    at, last = start, 0
    while at < len(data):
        begin = at
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        in_order = number >= last or number in (10, 11)
        if not 0 < number <= 14 or not in_order or kind not in (0, 2) or (number == 1 and begin != start):
            at = begin
            break
        if kind == 2:
            length, at = read_varint(data, at)
            at += length
        else:
            _, at = read_varint(data, at)
        last = last if number in (10, 11) else number
    return descriptor_pb2.FileDescriptorProto.FromString(data[start:at])


def descriptors(executable):
    data = open(executable, "rb").read()
    found = {}
    for match in re.finditer(rb"\n.((?:src|google|opencensus)/[\w/.]*\.proto)", data):
        if data[match.start() + 1] == len(match.group(1)):
            found[match.group(1).decode()] = file_descriptor(data, match.start())
    return found


def scalar(field, rng):
    kind = field.cpp_type
    if kind == field.CPPTYPE_ENUM:
        return rng.choice([v for v in field.enum_type.values if v.number] or field.enum_type.values).number
    if kind == field.CPPTYPE_BOOL:
        return True
    if kind in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return rng.randrange(1, 1000) / 8
    if kind == field.CPPTYPE_STRING:
        text = "".join(rng.choice("abcdé") for _ in range(rng.randrange(1, 40)))
        return text if field.type == field.TYPE_STRING else text.encode() + b"\xff\x00"
    bits = 31 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 63
    value = rng.getrandbits(bits) | 1
    return -value if kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64) and rng.random() < 0.5 else value


def map_key(field, rng):
    """Keys of one length, which every library sorts alike."""
    return f"{rng.getrandbits(32):08x}" if field.type == field.TYPE_STRING else scalar(field, rng)


def fill(message, rng, depth):
    chosen = {rng.choice(o.fields).name for o in message.DESCRIPTOR.oneofs}
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and field.name not in chosen:
            continue
        nested = field.message_type
        if nested is not None and depth == 0:
            continue
        if nested is not None and nested.GetOptions().map_entry:
            key, value = nested.fields_by_name["key"], nested.fields_by_name["value"]
            if value.message_type is not None and depth == 1:
                continue  # Empty values may be written or left out.
            entries = getattr(message, field.name)
            for _ in range(3):
                if value.message_type is not None:
                    fill(entries[map_key(key, rng)], rng, depth - 1)
                else:
                    entries[map_key(key, rng)] = scalar(value, rng)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(2):
                if nested is not None:
                    fill(values.add(), rng, depth - 1)
                else:
                    values.append(scalar(field, rng))
        elif nested is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            fill(inner, rng, depth - 1)
        else:
            setattr(message, field.name, scalar(field, rng))


def main():
    package = importlib.util.find_spec("ray").submodule_search_locations[0]
    files = descriptors(package + "/core/src/ray/gcs/gcs_server")
    # Where raylet-uring is attached, Ray's own raylet stands aside.
    raylet = package + "/core/src/ray/raylet/raylet"
    files |= descriptors(raylet + ".stock" if os.path.exists(raylet + ".stock") else raylet)
    pool = descriptor_pool.DescriptorPool()

    def add(name, seen):
        if name in files and name not in seen:
            seen.add(name)
            for dependency in files[name].dependency:
                add(dependency, seen)
            pool.Add(files[name])

    seen = set()
    wanted = [name for name in files if name.startswith("src/ray/") or name.endswith("/health.proto")]
    for name in wanted:
        add(name, seen)
    for name in wanted:
        for proto in files[name].message_type:
            full = f"{files[name].package}.{proto.name}"
            kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(full))
            for seed in range(int(sys.argv[1])):
                message = kind()
                fill(message, random.Random(f"{full} {seed}"), MAX_DEPTH)
                print(full, base64.b64encode(message.SerializeToString(deterministic=True)).decode(), sep="\t")


main()
