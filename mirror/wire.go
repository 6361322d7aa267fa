package mirror

import (
	"encoding/binary"
	"errors"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// An object is packed without being decoded: what is kept of it are fields of its message on the wire, in their order. So a list of many objects makes little garbage.

// keeper packs the objects of one set, one after the other.
type keeper struct {
	kept  message
	short map[string]string // names of labels and annotations that are kept, and what stands for them
	node  string            // the only one whose name is kept in EndpointSlices

	out             []byte // what is kept of this object
	namespace, name []byte
	service         []byte // the value of discoveryv1.LabelServiceName
	has             uint32 // which labels and annotations that are kept it has, see shortBit
	named           bool   // it tells hostnames
}

// shortBit stands for a label or annotation that is kept, by its short name.
func shortBit(short string) uint32 { return 1 << (short[0] - firstShort) }

// keep reads an object.
func (k *keeper) keep(object []byte) error {
	k.out, k.namespace, k.name, k.service, k.has, k.named = k.out[:0], nil, nil, nil, 0, false
	return k.walk(object, &k.kept)
}

// key is that of an object of a name, in the namespace of this one.
func (k *keeper) key(name []byte) string {
	if len(k.namespace) == 0 {
		return string(name)
	}
	return string(k.namespace) + "/" + string(name)
}

// message says what is kept of the fields of a message, by their numbers; nil: nothing.
type message [25]func(k *keeper, f *field) error

func (k *keeper) walk(b []byte, m *message) error {
	var f field
	for len(b) > 0 {
		var err error
		if b, err = f.read(b); err != nil {
			return err
		}
		if f.number < uint64(len(m)) && m[f.number] != nil {
			if err := m[f.number](k, &f); err != nil {
				return err
			}
		}
	}
	return nil
}

// whole keeps a field as it is.
func whole(k *keeper, f *field) error {
	k.out = append(k.out, f.all...)
	return nil
}

// part keeps some fields of a message.
func part(m message) func(*keeper, *field) error {
	return func(k *keeper, f *field) error {
		at := len(k.out)
		if err := k.walk(f.value, &m); err != nil {
			return err
		}
		k.enclose(f.number, at)
		return nil
	}
}

// enclose makes what is kept since a place a field of a number.
func (k *keeper) enclose(number uint64, since int) {
	var head [2 * binary.MaxVarintLen64]byte
	h := binary.AppendUvarint(head[:0], number<<3|lengthDelimited)
	k.out = slices.Insert(k.out, since, binary.AppendUvarint(h, uint64(len(k.out)-since))...)
}

// labels keeps an entry of a map of labels or annotations, by the short name, if somebody asks for it.
func labels(k *keeper, f *field) error {
	var name, value []byte
	var e field
	for b := f.value; len(b) > 0; {
		var err error
		if b, err = e.read(b); err != nil {
			return err
		}
		switch e.number {
		case 1:
			name = e.value
		case 2:
			value = e.value
		}
	}
	short, ok := k.short[string(name)]
	if !ok {
		return nil
	}
	if f.number == labelsNumber && string(name) == discoveryv1.LabelServiceName {
		k.service = value
	}
	k.has |= shortBit(short)
	at := len(k.out)
	for i, text := range [][]byte{[]byte(short), value} {
		k.out = append(k.out, byte(i+1)<<3|lengthDelimited)
		k.out = append(binary.AppendUvarint(k.out, uint64(len(text))), text...)
	}
	k.enclose(f.number, at)
	return nil
}

// metadata is without name and namespace, which the key tells. The numbers of all fields are those of the API's generated.proto.
var metadata = message{
	1:            func(k *keeper, f *field) error { k.name = f.value; return nil },
	3:            func(k *keeper, f *field) error { k.namespace = f.value; return nil },
	5:            whole, // uid
	labelsNumber: labels,
	12:           labels, // annotations
}

const labelsNumber = 11

func without(m message, numbers ...int) message {
	for _, n := range numbers {
		m[n] = nil
	}
	return m
}

func all(m message) message {
	for i := range m[1:] { // no field has number 0
		m[i+1] = whole
	}
	return m
}

var (
	keptService = message{
		1: part(metadata),
		2: part(without(all(message{}), 2, 17, 19)), // spec: not selector, ipFamilyPolicy and ipFamilies
		3: part(message{1: whole}),                  // status: loadBalancer
	}
	keptSlice = message{
		1: part(without(metadata, 5)),
		2: part(message{ // endpoints
			1: whole, // addresses
			2: whole, // conditions
			3: func(k *keeper, f *field) error { // hostname
				k.named = k.named || len(f.value) > 0
				return whole(k, f)
			},
			6: func(k *keeper, f *field) error { // nodeName
				if string(f.value) == k.node {
					return whole(k, f)
				}
				return nil
			},
			8: whole, // hints
		}),
		3: whole, // ports
		4: whole, // addressType
	}
	keptNamespace = message{1: part(metadata)}
	keptPod       = message{
		1: part(metadata),
		2: part(message{11: whole}),           // spec: hostNetwork
		3: part(message{1: whole, 12: whole}), // status: phase and podIPs
	}
)

// Wire types, as in google.golang.org/protobuf/encoding/protowire.
const (
	varint = iota
	fixed64
	lengthDelimited
	fixed32 = 5
)

// field is one of a message: value is what has a length, all is it with its number.
type field struct {
	number     uint64
	value, all []byte
}

var errWire = errors.New("not a message of protobuf")

// read reads a field from the start of b, and returns what follows.
func (f *field) read(b []byte) ([]byte, error) {
	tag, n := binary.Uvarint(b)
	if n <= 0 {
		return nil, errWire
	}
	if f.number, f.value = tag>>3, nil; f.number == 0 {
		return nil, errWire
	}
	size := uint64(0)
	switch tag & 7 {
	case varint:
		_, v := binary.Uvarint(b[n:])
		if v <= 0 {
			return nil, errWire
		}
		size = uint64(v)
	case fixed64:
		size = 8
	case fixed32:
		size = 4
	case lengthDelimited:
		v := 0
		if size, v = binary.Uvarint(b[n:]); v <= 0 {
			return nil, errWire
		}
		if n += v; size <= uint64(len(b)-n) {
			f.value = b[n : n+int(size)]
		}
	default:
		return nil, errWire
	}
	if size > uint64(len(b)-n) {
		return nil, errWire
	}
	end := n + int(size)
	f.all = b[:end]
	return b[end:], nil
}
