package allocator

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"
)

// memory is a store of the few operations that claims need.
type memory struct {
	storage.Interface
	mu   sync.Mutex
	keys map[string]runtime.Object
	rev  int
	fail error // of every operation, where set
}

func newMemory() *memory { return &memory{keys: map[string]runtime.Object{}} }

func (m *memory) lock() (func(), error) {
	m.mu.Lock()
	return m.mu.Unlock, m.fail
}

func assign(dst, src runtime.Object) {
	reflect.ValueOf(dst).Elem().Set(reflect.ValueOf(src.DeepCopyObject()).Elem())
}

func (m *memory) Create(_ context.Context, key string, obj, out runtime.Object, _ uint64) error {
	unlock, err := m.lock()
	defer unlock()
	if err != nil {
		return err
	}
	if m.keys[key] != nil {
		return storage.NewKeyExistsError(key, 0)
	}
	m.rev++
	obj = obj.DeepCopyObject()
	obj.(metav1.Object).SetResourceVersion(strconv.Itoa(m.rev))
	m.keys[key] = obj
	assign(out, obj)
	return nil
}

func (m *memory) Get(_ context.Context, key string, _ storage.GetOptions, out runtime.Object) error {
	unlock, err := m.lock()
	defer unlock()
	if err != nil {
		return err
	}
	if m.keys[key] == nil {
		return storage.NewKeyNotFoundError(key, 0)
	}
	assign(out, m.keys[key])
	return nil
}

func (m *memory) GetList(_ context.Context, prefix string, _ storage.ListOptions, list runtime.Object) error {
	unlock, err := m.lock()
	defer unlock()
	if err != nil {
		return err
	}
	var all []runtime.Object
	for key, obj := range m.keys {
		if len(key) > len(prefix) && key[:len(prefix)] == prefix {
			all = append(all, obj.DeepCopyObject())
		}
	}
	return meta.SetList(list, all)
}

func (m *memory) Delete(ctx context.Context, key string, out runtime.Object, pre *storage.Preconditions, validate storage.ValidateObjectFunc, _ runtime.Object, _ storage.DeleteOptions) error {
	unlock, err := m.lock()
	defer unlock()
	if err != nil {
		return err
	}
	obj := m.keys[key]
	if obj == nil {
		return storage.NewKeyNotFoundError(key, 0)
	}
	if pre != nil && pre.ResourceVersion != nil && *pre.ResourceVersion != obj.(metav1.Object).GetResourceVersion() {
		return fmt.Errorf("precondition failed")
	}
	if err := validate(ctx, obj); err != nil {
		return err
	}
	delete(m.keys, key)
	assign(out, obj)
	return nil
}
