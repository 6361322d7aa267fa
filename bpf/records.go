package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Pins of maps, by their names.
const (
	recordsPin = "name_records"
	listsPin   = "name_lists"
)

var recordPins = []string{recordsPin, recordsPin + moreSuffix, listsPin, listsPin + moreSuffix}

// recordTable implements Table[Record] over two maps: of the answers that are short, as most are, and of the others.
type recordTable struct {
	short *ownedMap[netAsked, netRecord]
	long  *ownedMap[netAsked, netList]
}

func openRecords(maps map[string]*ebpf.Map, pinDir string) (*recordTable, error) {
	short, err := openOverflowing[netAsked](maps, pinDir, recordsPin, "record", func(v netRecord) string { return textOf(v.Owner[:]) })
	if err != nil {
		return nil, err
	}
	long, err := openOverflowing[netAsked](maps, pinDir, listsPin, "list of records", func(v netList) string { return textOf(v.Owner[:]) })
	if err != nil {
		return nil, errors.Join(err, short.more.close())
	}
	return &recordTable{short, long}, nil
}

// Replace implements Table. A row that goes from one map to the other is nowhere for a moment, in which user space answers.
func (t *recordTable) Replace(owner string, want []Record) (Changes, error) {
	short, long := map[netAsked]netRecord{}, map[netAsked]netList{}
	for _, r := range want {
		s, err := storedOf(r.Message)
		if err != nil {
			return Changes{}, fmt.Errorf("bpf: record of %s: %w", owner, err)
		}
		if len(s.body) <= len(netRecord{}.Body) {
			var v netRecord
			if err := text(v.Owner[:], owner, "owner"); err != nil {
				return Changes{}, err
			}
			copy(v.Body[:], s.body)
			v.Head = s.head(0)
			v.Tag = v.Head.Tag
			short[s.key] = v
		} else if len(s.body) <= len(netList{}.Body) {
			var v netList
			if err := text(v.Owner[:], owner, "owner"); err != nil {
				return Changes{}, err
			}
			copy(v.Body[:], s.body)
			v.Head = s.head(0)
			v.Tag = v.Head.Tag
			long[s.key] = v
		}
	}
	a, errA := t.short.replace(owner, short, showAsked)
	b, errB := t.long.replace(owner, long, showAsked)
	return a.and(b), errors.Join(errA, errB)
}

// Prune implements Table.
func (t *recordTable) Prune(keep func(string) bool) (Changes, error) {
	a, errA := t.short.prune(keep, showAsked)
	b, errB := t.long.prune(keep, showAsked)
	return a.and(b), errors.Join(errA, errB)
}

func (c Changes) and(o Changes) Changes {
	return Changes{c.Added + o.Added, c.Updated + o.Updated, c.Deleted + o.Deleted}
}

// Dump implements Table. Messages have no id, and what the programs add to them is not in their headers.
func (t *recordTable) Dump() ([]Record, error) {
	var out []Record
	errShort := t.short.each(func(k netAsked, v netRecord) {
		out = append(out, Record{textOf(v.Owner[:]), messageOf(k, v.Head, v.Body[:])})
	})
	errLong := t.long.each(func(k netAsked, v netList) {
		out = append(out, Record{textOf(v.Owner[:]), messageOf(k, v.Head, v.Body[:])})
	})
	return out, errors.Join(errShort, errLong)
}
