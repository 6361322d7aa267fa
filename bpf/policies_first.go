package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// seedPolicies gives the pods of a node on which nothing was ever judged rows by which nothing judges them. It comes before the programs that drop what
// has no row, so that pods from before there were policies go on until somebody says what they may. The mark of a node on which something was judged
// is a revision: it is there from the first start to the last, also while there are no pods.
func (c Config) seedPolicies() error {
	if !c.Policy {
		return nil
	}
	revision, err := ebpf.LoadPinnedMap(filepath.Join(c.PinDir, "policy_revision"), nil)
	if err == nil {
		var n uint32
		err = errors.Join(revision.Lookup(uint32(0), &n), revision.Close())
		if err != nil || n > 0 {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("bpf: policy revision: %w", err)
	}
	endpoints, err := ebpf.LoadPinnedMap(filepath.Join(c.PinDir, "endpoints"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bpf: endpoints: %w", err)
	}
	defer endpoints.Close()
	subjects, err := c.policySubjects()
	if err != nil {
		return err
	}
	defer subjects.Close()
	var failed error
	err = eachRow(endpoints, "endpoints", func(k netAddr, _ netEndpoint) {
		if err := subjects.Update(k, netPolicySubject{}, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			failed = fmt.Errorf("bpf: policy subject %v: %w", addrOf(k), err)
		}
	})
	return errors.Join(err, failed)
}

// policySubjects is the pinned table of subjects, made if there is none.
func (c Config) policySubjects() (*ebpf.Map, error) {
	spec, err := loadNet()
	if err != nil {
		return nil, fmt.Errorf("bpf: object: %w", err)
	}
	m, err := ebpf.NewMapWithOptions(spec.Maps["policy_subjects"], ebpf.MapOptions{PinPath: c.PinDir})
	if err != nil {
		return nil, fmt.Errorf("bpf: policy_subjects: %w", err)
	}
	return m, nil
}

// adoptAgain lets connections of judged pods be adopted once more, as when they began to be judged: rows of their flows may be about to be lost. It is
// written down before they are.
func (c Config) adoptAgain() error {
	m, err := c.policySubjects()
	if err != nil {
		return err
	}
	defer m.Close()
	rows := map[netAddr]netPolicySubject{}
	if err := eachRow(m, "policy_subjects", func(k netAddr, v netPolicySubject) { rows[k] = v }); err != nil {
		return err
	}
	for k, v := range rows {
		if v.Flags&subjectFollowed == 0 {
			continue
		}
		v.Adopts = uint32(Monotonic().Seconds()) + adoptFor
		if err := m.Put(k, v); err != nil {
			return fmt.Errorf("bpf: policy subject %v: %w", addrOf(k), err)
		}
	}
	return nil
}
