package compiler

import (
	"slices"
	"strings"
	"unique"
)

// word is a string that is kept once, however many objects have it.
func word(s string) string { return unique.Make(s).Value() }

// label is a key with its value.
type label struct{ key, value string }

// labelSet are labels by their keys, in little room. It is a labels.Labels.
type labelSet []label

func words(set map[string]string) labelSet {
	out := make(labelSet, 0, len(set))
	for k, v := range set {
		out = append(out, label{word(k), word(v)})
	}
	slices.SortFunc(out, func(a, b label) int { return strings.Compare(a.key, b.key) })
	return out
}

// Lookup implements labels.Labels, as do the next two.
func (s labelSet) Lookup(key string) (string, bool) {
	for _, l := range s {
		if l.key == key {
			return l.value, true
		}
	}
	return "", false
}

func (s labelSet) Has(key string) bool {
	_, ok := s.Lookup(key)
	return ok
}

func (s labelSet) Get(key string) string {
	value, _ := s.Lookup(key)
	return value
}

// with has another value of a key.
func (s labelSet) with(key, value string) labelSet {
	out := slices.DeleteFunc(slices.Clone(s), func(l label) bool { return l.key == key })
	at, _ := slices.BinarySearchFunc(out, key, func(l label, key string) int { return strings.Compare(l.key, key) })
	return slices.Insert(out, at, label{key, value})
}
