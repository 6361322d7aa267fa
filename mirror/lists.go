package mirror

import "slices"

// lists lead from a value to the keys of the objects that have it, in the order in which they came to have it. Mostly there is one, which takes no list.
type lists[K comparable] struct {
	first map[K]string
	more  map[K][]string // the others
}

func newLists[K comparable]() lists[K] { return lists[K]{map[K]string{}, map[K][]string{}} }

// add notes an object that is not there yet.
func (l lists[K]) add(k K, key string) {
	if _, ok := l.first[k]; ok {
		l.more[k] = append(l.more[k], key)
	} else {
		l.first[k] = key
	}
}

func (l lists[K]) remove(k K, key string) {
	more := l.more[k]
	if l.first[k] != key {
		if i := slices.Index(more, key); i >= 0 {
			more = slices.Delete(more, i, i+1)
		}
	} else if len(more) > 0 {
		l.first[k] = more[0]
		more = slices.Delete(more, 0, 1)
	} else {
		delete(l.first, k)
	}
	if len(more) > 0 {
		l.more[k] = more
	} else {
		delete(l.more, k)
	}
}

func (l lists[K]) keys(k K) []string {
	first, ok := l.first[k]
	if !ok {
		return nil
	}
	return append([]string{first}, l.more[k]...)
}
