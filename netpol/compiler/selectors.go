package compiler

import (
	"runtime"
	"sync"
	"weak"

	"k8s.io/apimachinery/pkg/labels"
)

// selector is a label selector that is kept once, however many policies have it.
type selector struct{ labels.Selector }

// selectors are those that somebody has, by what they say.
var selectors = struct {
	sync.Mutex
	by map[string]weak.Pointer[selector]
}{by: map[string]weak.Pointer[selector]{}}

// once gives equal selectors as one.
func once(s labels.Selector) labels.Selector {
	if wants, some := s.Requirements(); !some || len(wants) == 0 { // all or nothing, of which there is one each
		return s
	}
	key := s.String()
	selectors.Lock()
	defer selectors.Unlock()
	if have := selectors.by[key].Value(); have != nil {
		return have
	}
	have := &selector{s}
	selectors.by[key] = weak.Make(have)
	runtime.AddCleanup(have, forgetSelector, key)
	return have
}

// forgetSelector follows the end of one, unless there is another by then.
func forgetSelector(key string) {
	selectors.Lock()
	defer selectors.Unlock()
	if selectors.by[key].Value() == nil {
		delete(selectors.by, key)
	}
}
